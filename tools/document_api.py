"""Write docs/api.md: all that `obc_onnx` offers, as signatures and docstrings tell it.

python tools/document_api.py           write the page
python tools/document_api.py --check   fail where it is not what would be written
"""

from __future__ import annotations

import ast
import importlib
import inspect
import re
import sys
from dataclasses import MISSING, dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pages import write_or_check

import obc_onnx

if TYPE_CHECKING:
    from collections.abc import Iterator
    from types import ModuleType

    Definition = ast.FunctionDef | ast.ClassDef

ROOT = Path(__file__).resolve().parents[1]
PAGE = ROOT / "docs" / "api.md"
HEAD = """# Python API

Written by `tools/document_api.py` from signatures and docstrings: do not edit it by hand.

Everything here is a name of `obc_onnx` itself, and is loaded when it is first used. What the
command line can do is here too: an option of a command is an argument, or a field of one of the
classes below. Errors name arguments and fields in backticks; the command line prints its options in
their place.
"""
METHODS = {
    "Inspection": ("to_json",),
    "PruningPlan": ("load", "to_json"),
    "Report": ("verdict", "to_json"),
    "Result": ("model", "save"),
    "RuleSet": ("extended", "operators"),
    "Scores": ("load", "save"),
    "Sensitivity": ("to_json",),
    "Sweep": ("front", "knee", "to_json"),
}
"""What is offered of each class besides its fields; other methods are for the package."""
SECTION = re.compile(r"^(Args|Attributes|Returns|Raises):$", re.MULTILINE)
TITLES = {"Args": "Arguments", "Attributes": "Fields"}
WIDTH = 100


@dataclass(frozen=True)
class Named:
    """A public name: the module that defines it, and where in the source."""

    name: str
    module: ModuleType
    definition: Definition

    @property
    def docstring(self) -> str:
        """The docstring, without indentation."""
        return ast.get_docstring(self.definition) or ""


@cache
def tree_of(module: ModuleType) -> ast.Module:
    """Parse a module."""
    return ast.parse(inspect.getsource(module))


def find(name: str) -> Named:
    """Find the definition of a public function or class."""
    module = importlib.import_module(getattr(obc_onnx, name).__module__)
    for node in tree_of(module).body:
        if isinstance(node, (ast.FunctionDef, ast.ClassDef)) and node.name == name:
            return Named(name, module, node)
    raise LookupError(f"'{module.__name__}' does not define '{name}'")


def default(node: ast.expr, module: ModuleType) -> str:
    """Write a default: a constant by its value, anything else as the source does."""
    value = getattr(module, node.id, None) if isinstance(node, ast.Name) else None
    return repr(value) if isinstance(value, (bool, int, float, str)) else ast.unparse(node)


def parameters(function: ast.FunctionDef, module: ModuleType) -> Iterator[str]:
    """Write each parameter of a function, save `self` and `cls`."""
    args = function.args
    defaults = [*[None] * (len(args.args) - len(args.defaults)), *args.defaults]
    pairs: list[tuple[ast.arg, ast.expr | None]] = list(zip(args.args, defaults, strict=True))
    yield from (parameter(a, d, module) for a, d in pairs if a.arg not in {"self", "cls"})
    if args.kwonlyargs:
        yield "*"
    for own, value in zip(args.kwonlyargs, args.kw_defaults, strict=True):
        yield parameter(own, value, module)


def parameter(argument: ast.arg, value: ast.expr | None, module: ModuleType) -> str:
    """Write one parameter with its type and its default."""
    typed = f"{argument.arg}: {ast.unparse(argument.annotation)}" if argument.annotation else ""
    return typed if value is None else f"{typed} = {default(value, module)}"


def field_lines(body: ast.ClassDef, module: ModuleType) -> Iterator[str]:
    """Write each field of a dataclass as a parameter."""
    for node in body.body:
        if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
            typed = f"{node.target.id}: {ast.unparse(node.annotation)}"
            if node.value is None:
                yield typed
            elif isinstance(node.value, ast.Call):
                found = getattr(module, body.name).__dataclass_fields__[node.target.id]
                made = f"{found.default_factory.__name__}()" if found.default is MISSING else None
                yield f"{typed} = {made or found.default}"
            else:
                yield f"{typed} = {default(node.value, module)}"


def call(name: str, arguments: list[str], returns: ast.expr | None = None) -> str:
    """Write a signature, one argument a line where it is long."""
    end = "" if returns is None else f" -> {ast.unparse(returns)}"
    line = f"{name}({', '.join(arguments)}){end}"
    if len(line) <= WIDTH:
        return line
    return "\n".join([f"{name}(", *(f"    {argument}," for argument in arguments), f"){end}"])


def signature(named: Named) -> str:
    """Write how a function or a class is called."""
    definition, module = named.definition, named.module
    if isinstance(definition, ast.FunctionDef):
        return call(named.name, list(parameters(definition, module)), definition.returns)
    for node in definition.body:
        if isinstance(node, ast.FunctionDef) and node.name == "__init__":
            return call(named.name, list(parameters(node, module)))
    return call(named.name, list(field_lines(definition, module)))


def described(docstring: str) -> str:
    """Write a docstring as Markdown: its text, then a list for each section."""
    text, *parts = SECTION.split(docstring)
    found = [text.strip()]
    for title, body in zip(parts[::2], parts[1::2], strict=True):
        found += ["", f"**{TITLES.get(title, title)}**", "", *items(inspect.cleandoc(body))]
    return "\n".join(found)


def items(body: str) -> Iterator[str]:
    """Write the entries of a section as a list; a section without names as a paragraph."""
    for line in body.splitlines():
        entry = re.match(r"([\w, ]+): (.*)", line)
        if entry is not None and not line.startswith(" "):
            yield f"- `{entry[1]}`: {entry[2]}"
        else:
            yield f"  {line.strip()}" if line.startswith(" ") else line


def methods(named: Named) -> Iterator[str]:
    """Describe what is offered of a class besides its fields."""
    offered = METHODS.get(named.name, ())
    own = {n.name: n for n in named.definition.body if isinstance(n, ast.FunctionDef)}
    for name in offered:
        method = own[name]
        kinds = {node.id for node in method.decorator_list if isinstance(node, ast.Name)}
        title = f"{named.name}.{name}"
        if "property" in kinds:
            line = f"{title}: {ast.unparse(method.returns)}" if method.returns else title
        else:
            line = call(title, list(parameters(method, named.module)), method.returns)
        yield f"```python\n{line}\n```\n\n{described(ast.get_docstring(method) or '')}\n"


def aliases(public: list[Named]) -> dict[str, str]:
    """Find what stands for a longer type in the signatures, such as `Model`."""
    found = {}
    for named in public:
        for word in set(re.findall(r"[A-Z]\w+", signature(named))) - set(obc_onnx.__all__):
            source = imported_from(named.module).get(word, named.module.__name__)
            for node in ast.walk(tree_of(importlib.import_module(source))):
                if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == word:
                    found[word] = ast.unparse(node.value)
    return {word: found[word] for word in sorted(found)}


def imported_from(module: ModuleType) -> dict[str, str]:
    """Return the module that each imported name of ours comes from, those for types included."""
    return {
        alias.name: node.module
        for node in ast.walk(tree_of(module))
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("obc_onnx.")
        for alias in node.names
        if node.module is not None
    }


def page() -> str:
    """Write the page as it should be."""
    values: dict[str, Any] = {name: getattr(obc_onnx, name) for name in obc_onnx.__all__}
    public = {n: find(n) for n, v in values.items() if inspect.isfunction(v) or inspect.isclass(v)}
    functions = [named for n, named in public.items() if inspect.isfunction(values[n])]
    errors = [n for n in public if inspect.isclass(values[n]) and issubclass(values[n], Exception)]
    classes = [named for n, named in public.items() if named not in functions and n not in errors]
    lines = [HEAD]
    for title, part in (("Functions", functions), ("Classes", classes)):
        lines.append(f"## {title}\n")
        for named in part:
            lines.append(f"### {named.name}\n\n```python\n{signature(named)}\n```\n")
            lines.append(f"{described(named.docstring)}\n")
            lines.extend(methods(named))
    lines.append("## Errors\n")
    for name in errors:
        base = values[name].__base__.__name__
        lines.append(f"- `{name}`, a kind of `{base}`: {public[name].docstring}")
    lines.append("\n## Other names\n")
    lines.append("- `DEFAULT_RULES`: the `RuleSet` of all operators that are known.")
    lines.append("- `__version__`: the version of the package.")
    lines.append("\n## Types\n")
    lines += [f"- `{name}`: `{value}`" for name, value in aliases([*functions, *classes]).items()]
    return "\n".join(lines) + "\n"


def main() -> int:
    """Write the page, or compare it."""
    return write_or_check(PAGE, page, __doc__)


if __name__ == "__main__":
    sys.exit(main())
