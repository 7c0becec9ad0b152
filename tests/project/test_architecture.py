"""Layers, size and shape of the code, and the public names. Imports nothing heavy."""

from __future__ import annotations

import ast
import graphlib
import subprocess
import sys
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import pytest

import obc_onnx
from obc_onnx.ops.catalogue import DEFAULT_RULES

if TYPE_CHECKING:
    from collections.abc import Iterator

ROOT = Path(obc_onnx.__file__).parent
MAX_FUNCTION_LINES = 45
MAX_FILE_LINES = 480

LAYERS = (
    ("errors", "interruption", "version"),
    ("files", "installation", "memory", "progress", "user_code"),
    ("axes",),
    ("graph",),
    ("engines",),
    ("samples",),
    ("ops",),
    ("coupling",),
    ("branches",),
    ("surgery",),
    ("stripping",),
    ("measuring",),
    ("latency",),
    ("twin",),
    ("saliency",),
    ("planning", "equivalent"),
    ("recover",),
    ("training", "verification"),
    ("report", "tensorrt"),
    ("run",),
    ("",),
    ("cli", "olive_pass"),
    ("__main__",),
)
"""Packages, and the few modules beside them, from the lowest to the highest.

None imports one of its own layer or of one above, not even for types; "" is the package itself.
"""
SURGEON = {
    "canonical", "copies", "export", "constants", "importing", "node", "node_lists", "structure",
}  # fmt: skip
"""Modules of `graph`."""
TORCH_ROOMS = {"equivalent", "ops", "recover", "saliency", "training", "twin"}
"""Packages that may know of torch; operator rules load it inside of functions."""
TORCH_BESIDE = {"run.twin_program"}
"""Modules elsewhere that load torch: what they offer is a module of torch."""
TORCH_FREE = (
    "cli.main",
    "run.api",
    "run.strip",
    "verification.checks",
    "coupling.analysis",
    "surgery.cut",
    "surgery.mask",
    "planning.plan",
    "planning.search",
    "ops.catalogue",
)
NAMES_OPERATORS = {
    # what they fold, each by what it is
    "graph.constants": {"Concat", "ConstantOfShape", "Transpose"},
    "graph.copies": {"Identity"},  # one of its own stands for a copy
    "surgery.mask": {"Mul"},  # written in front of what is masked
    "stripping.heads": {"Gather", "Where"},  # written behind outputs that are put back
    "stripping.renumber": {"Gather"},  # written in front of embeddings
    "surgery.gate": {"Add", "Mul"},  # written behind values that go
    "equivalent.norms": {"BatchNormalization"},  # written behind convolutions
    "twin.control": {"Identity"},  # written into a graph that would have no node
}
"""Operators that modules outside of `ops` name, apart from `graph.operators`, and why."""


class Import(NamedTuple):
    """One name that a module imports.

    Attributes:
        inside: Whether it does so inside a function.
        for_types: Whether it does so for type checkers alone.
    """

    module: str
    name: str
    inside: bool
    for_types: bool


def module_of(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


PATHS = {module_of(path): path for path in sorted(ROOT.rglob("*.py"))}


@cache
def tree(module: str) -> ast.Module:
    return ast.parse(PATHS[module].read_text(encoding="utf-8"))


def for_types_only(node: ast.AST) -> bool:
    return isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"


def statements(
    node: ast.AST, *, inside: bool = False, for_types: bool = False
) -> Iterator[tuple[ast.AST, bool, bool]]:
    """Yield every node, whether it is inside a function, and whether for type checkers alone."""
    for child in ast.iter_child_nodes(node):
        yield child, inside, for_types
        function = isinstance(child, (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda))
        yield from statements(
            child, inside=inside or function, for_types=for_types or for_types_only(child)
        )


@cache
def imports(module: str) -> tuple[Import, ...]:
    found = []
    for node, inside, for_types in statements(tree(module)):
        names: list[str] = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module:
            names = sorted({imported(node.module, alias.name) for alias in node.names})
        found += [Import(module, name, inside, for_types) for name in names]
    return tuple(found)


def imported(module: str, name: str) -> str:
    """Return the module that `from module import name` loads: `name` may be one itself."""
    inner = f"{module}.{name}"
    return inner if inner.removeprefix("obc_onnx.") in PATHS else module


def of_package(entry: Import) -> str | None:
    """Return the module of ours that is imported, or None."""
    name = entry.name.removeprefix("obc_onnx").removeprefix(".")
    return name if entry.name.split(".")[0] == "obc_onnx" else None


def users_of(package: str) -> Iterator[Import]:
    """Yield what imports a package to run it."""
    for module in PATHS:
        for entry in imports(module):
            if entry.name.split(".")[0] == package and not entry.for_types:
                yield entry


def functions(module: str) -> Iterator[ast.FunctionDef]:
    return (node for node in ast.walk(tree(module)) if isinstance(node, ast.FunctionDef))


def public_definitions(
    module: str,
) -> Iterator[ast.FunctionDef | ast.ClassDef]:
    """Yield public functions and classes of a module, and public methods of public classes."""
    for node in tree(module).body:
        if isinstance(node, (ast.FunctionDef, ast.ClassDef)) and not node.name.startswith("_"):
            yield node
        if isinstance(node, ast.ClassDef) and not node.name.startswith("_"):
            methods = (child for child in node.body if isinstance(child, ast.FunctionDef))
            yield from (method for method in methods if not method.name.startswith("_"))


def overrides(module: str, method: ast.FunctionDef) -> bool:
    """Say whether a base class documents a method: those of operator rules and torch modules."""
    inherited = {"couple", "forward", "macs", "resize", "slice", "score"}
    return method.name in inherited and module.split(".", maxsplit=1)[0] in {
        "ops",
        "saliency",
        "equivalent",
    }


def room(module: str) -> str:
    """Return the package of a module, or the module itself where it is in none."""
    return module.split(".", maxsplit=1)[0]


def level(module: str) -> int:
    return next(place for place, layer in enumerate(LAYERS) if room(module) in layer)


def test_shapes_for_a_twin_are_never_handed_around() -> None:
    """Those of the original are wrong for what was cut: `derived_twin` finds a graph's own."""
    names = {
        module: {node.id for node in ast.walk(tree(module)) if isinstance(node, ast.Name)}
        for module in PATHS
    }
    assert {m for m, used in names.items() if "build_twin" in used} == {
        "twin.build",
        "run.twin_program",
    }


def test_every_layer_is_there_and_every_module_has_one() -> None:
    listed = [name for layer in LAYERS for name in layer]
    assert len(listed) == len(set(listed))
    assert set(listed) == {room(module) for module in PATHS}


def test_imports_only_go_down() -> None:
    upwards = [
        f"{module} imports {target}"
        for module in PATHS
        for target in map(of_package, imports(module))
        if target is not None and room(module) != room(target) and level(module) <= level(target)
    ]
    assert not upwards


def test_no_modules_import_each_other_in_a_circle() -> None:
    """Not for types either: a pair that needs each other's names is one idea, or needs a third."""
    sorter = graphlib.TopologicalSorter(
        {m: {t for t in map(of_package, imports(m)) if t is not None} - {m} for m in PATHS}
    )
    sorter.prepare()  # raises CycleError


def operators_named(module: str) -> set[str]:
    """Return the operators with a rule, and Constant, that are written in a module as strings."""
    known = {op_type for _, op_type in DEFAULT_RULES.operators} | {"Constant"}
    strings = {node.value for node in ast.walk(tree(module)) if isinstance(node, ast.Constant)}
    return {value for value in strings if isinstance(value, str)} & known


def test_only_rules_know_operators_by_name() -> None:
    """What an operator does is asked of its rule, so that the rules of users take part."""
    outside = [m for m in PATHS if room(m) != "ops" and m != "graph.operators"]
    assert {m: names for m in outside if (names := operators_named(m))} == NAMES_OPERATORS


def test_only_the_graph_touches_graphsurgeon() -> None:
    users = {entry.module for entry in users_of("onnx_graphsurgeon")}
    assert users == {f"graph.{name}" for name in SURGEON}


def test_torch_stays_where_it_is_needed() -> None:
    users = list(users_of("torch"))
    assert {
        entry.module for entry in users if room(entry.module) not in TORCH_ROOMS
    } == TORCH_BESIDE
    rules = {e.module for e in users if room(e.module) == "ops" and not e.inside}
    assert rules == {"ops.control.modules"}


@pytest.mark.parametrize("module", TORCH_FREE)
def test_importing_it_loads_no_torch(module: str) -> None:
    seen, queue = set(), [module]
    while queue:
        current = queue.pop()
        if current in seen:
            continue
        seen.add(current)
        for entry in imports(current):
            target = of_package(entry)
            if target is not None and not entry.inside and not entry.for_types:
                queue.append(target)
    assert not seen & {entry.module for entry in users_of("torch") if not entry.inside}


@pytest.mark.parametrize("module", PATHS)
def test_no_star_import_and_no_relative_one(module: str) -> None:
    for node in ast.walk(tree(module)):
        if isinstance(node, ast.ImportFrom):
            assert node.level == 0
            assert all(alias.name != "*" for alias in node.names)


@pytest.mark.parametrize("module", PATHS)
def test_nothing_catches_every_exception(module: str) -> None:
    broad = {"Exception", "BaseException"}
    for node in ast.walk(tree(module)):
        if isinstance(node, ast.ExceptHandler):
            assert node.type is not None, f"bare except in line {node.lineno}"
            caught = {name.id for name in ast.walk(node.type) if isinstance(name, ast.Name)}
            assert not caught & broad, f"line {node.lineno}"


@pytest.mark.parametrize("module", PATHS)
def test_files_and_functions_are_short(module: str) -> None:
    assert len(PATHS[module].read_text(encoding="utf-8").splitlines()) <= MAX_FILE_LINES
    long = {
        f"{node.name}: {lines} lines"
        for node in functions(module)
        if (lines := code_lines(node)) > MAX_FUNCTION_LINES
    }
    assert not long


def code_lines(function: ast.FunctionDef) -> int:
    """Count the lines of a function without its docstring and decorators."""
    end = function.end_lineno or function.lineno
    first = function.body[0]
    documented = ast.get_docstring(function, clean=False) is not None
    docs = (first.end_lineno or first.lineno) - first.lineno + 1 if documented else 0
    return end - function.lineno + 1 - docs


@pytest.mark.parametrize("module", PATHS)
def test_modules_and_everything_public_have_a_docstring(module: str) -> None:
    assert ast.get_docstring(tree(module))
    bare = {
        node.name
        for node in public_definitions(module)
        if ast.get_docstring(node) is None
        and not (isinstance(node, ast.FunctionDef) and overrides(module, node))
    }
    assert not bare


@pytest.mark.parametrize("module", PATHS)
def test_no_assert_stands_for_validation_and_nothing_prints(module: str) -> None:
    for node in ast.walk(tree(module)):
        called = isinstance(node, ast.Call) and isinstance(node.func, ast.Name)
        assert not (called and node.func.id == "print"), node.lineno  # type: ignore[attr-defined]


def test_the_public_names_are_those_that_are_listed() -> None:
    names = set(obc_onnx.__all__)
    assert dir(obc_onnx) == sorted(names)
    assert {*obc_onnx._DEFINED_IN, "__version__"} == names
    for_types = {
        alias.name: imported
        for node in ast.walk(tree(""))
        if isinstance(node, ast.ImportFrom) and (imported := node.module) is not None
        for alias in node.names
    }
    assert {n: for_types[n] for n in obc_onnx._DEFINED_IN} == {
        name: f"obc_onnx.{module}" for name, module in obc_onnx._DEFINED_IN.items()
    }
    loose = {name for name in vars(obc_onnx) if not name.startswith("_")} - {"annotations"}
    assert loose <= {*names, *map(room, PATHS)}
    for name in names:
        assert getattr(obc_onnx, name) is not None


def test_every_error_of_a_user_is_public() -> None:
    defined = {node.name for node in tree("errors").body if isinstance(node, ast.ClassDef)}
    assert defined <= set(obc_onnx.__all__)


def test_importing_the_package_loads_nothing_heavy() -> None:
    code = (
        "import sys, obc_onnx; print(*{'torch', 'onnx', 'numpy', 'onnxruntime'} & {*sys.modules})"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert not done.stdout.split()


def test_an_unknown_name_of_the_package_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="'prune'"):
        obc_onnx.prune  # noqa: B018
