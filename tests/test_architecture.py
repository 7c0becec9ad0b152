"""Layers, size and shape of the code, and the public names. Imports nothing heavy."""

from __future__ import annotations

import ast
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

import obc_onnx

if TYPE_CHECKING:
    from collections.abc import Iterator

ROOT = Path(obc_onnx.__file__).parent
MAX_FUNCTION_LINES = 45
MAX_FILE_LINES = 480

LAYERS = (
    ("errors", "version", "progress", "defaults", "memory"),
    ("files", "axes", "installation", "sources", "user_code"),
    ("external",),
    ("boundaries", "sizes", "ties"),
    ("unification",),
    ("foreign", "node", "node_lists", "dense", "outline"),
    ("batch_axes",),
    ("export", "folding", "reading"),
    ("copies",),
    ("canonical",),
    ("graph",),
    ("contents",),
    ("runtime",),
    ("feeds",),
    ("shapes",),
    ("ops.value",),
    ("ops.context",),
    ("ops.rule", "ops.arithmetic", "ops.attend", "ops.broadcast", "ops.dtypes", "ops.padding"),
    ("ops.elementwise", "ops.counterpart", "ops.host", "ops.recurrent_forward"),
    ("ops.control_modules",),
    ("ops.activation", "ops.conv", "ops.frozen", "ops.join", "ops.linear", "ops.norm", "ops.pool", "ops.quantize",
     "ops.reduce"),
    ("ops.requantize",),
    ("ops.attention", "ops.layer_norm", "ops.quantized_linear"),
    ("ops.contrib_attention", "ops.rotary"),
    ("ops.*",),
    ("ops",),
    ("patch",),
    ("spelling",),
    ("coupling",),
    ("inference",),
    ("explain",),
    ("tensors", "logits", "subgraphs"),
    ("holding",),
    ("module",),
    ("twin",),
    ("respelling",),
    ("surgery",),
    ("images", "padding", "precision", "oracle"),
    ("noise", "picture_files"),
    ("archives", "augmentation", "sample_checks", "ragged", "batch_guesses", "batch_runs"),
    ("stored", "batching"),
    ("placing",),
    ("data", "latency", "measure"),
    ("masks", "scales"),
    ("baseline",),
    ("processes", "loading"),
    ("saliency.options",),
    ("saliency.criterion", "saliency.members", "saliency.probes", "saliency.objective"),
    ("costs",),
    ("saliency.taps", "saliency.sweep", "plan", "limits", "ranking"),
    ("saliency.reads",),
    ("saliency.*",),
    ("saliency", "axis_maps"),
    ("planning",),
    ("scoring", "unfolding"),
    ("equivalent", "recover.methods", "recover", "recover.error", "recover.lockstep", "recover.least_squares"),
    ("channel_start", "recover.layers", "recover.norms", "recover.match", "recover.calibration"),
    ("recover.targets", "recover.origins", "recover.norm_moments"),
    ("recover.scores", "recover.fuse"),
    ("recover.refit",),
    ("recover.stage", "sensitivity", "max_drop"),
    ("training.options", "training.fabric", "training.synced_norm", "training.trial", "training.compared"),
    ("training.norm_modes", "training.loss", "training.mixing", "training.order", "training.optimise", "training.teacher", "training.sparse"),
    ("training.evaluation", "training.course"),
    ("training.engine",),
    ("verify", "analysis"),
    ("report",),
    ("report.doubts", "report.summary"),
    ("report.terminal", "report.picture", "result"),
    ("run_folder", "request"),
    ("training.keeper",),
    ("training.stage", "training"),
    ("result_checks",),
    ("compression",),
    ("pipeline", "program"),
    ("options",),
    ("augment_options", "score_options"),
    ("train_options", "commands"),
    ("plan_commands",),
    ("cli",),
    ("__main__",),
)  # fmt: skip
"""Modules from the lowest to the highest; none imports one of its own layer or of one above.

A star stands for the modules of a folder that are not listed: operator families and criteria.
"""
ENTRANCES = {("", "pipeline"), ("", "version")}
"""What the package itself hands on."""
SURGEON = {"canonical", "copies", "export", "folding", "graph", "node", "node_lists"}
TORCH = {"holding", "ops.control_modules", "module", "program", "tensors", "twin", "axis_maps", "channel_start", "equivalent", "loading", "recover.fuse", "recover.least_squares", "recover.lockstep", "recover.match", "recover.norm_moments", "recover.norms", "recover.origins", "recover.refit", "recover.scores", "recover.targets", "training.compared", "training.engine", "training.evaluation", "training.keeper", "training.loss", "training.optimise", "training.sparse", "training.synced_norm", "training.teacher", "processes", "saliency.activations",
         "saliency.gradients", "saliency.jacobian", "saliency.objective", "saliency.obs", "saliency.probes", "saliency.reads",
         "saliency.sweep", "saliency.taps"}  # fmt: skip
"""Modules that load torch when they are imported."""
TORCH_INSIDE = {"compression", "logits", "pipeline", "verify"}
"""Modules that load torch inside functions; every operator may, too."""
TORCH_FREE = (
    "cli",
    "pipeline",
    "verify",
    "coupling",
    "inference",
    "surgery",
    "plan",
    "ops",
    "shapes",
)


class Import:
    """One name that a module imports, and whether it does so inside a function."""

    def __init__(self, module: str, name: str, *, inside: bool) -> None:
        self.module, self.name, self.inside = module, name, inside


def module_of(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


PATHS = {module_of(path): path for path in sorted(ROOT.rglob("*.py"))}


@cache
def tree(module: str) -> ast.Module:
    return ast.parse(PATHS[module].read_text(encoding="utf-8"))


def for_types_only(node: ast.AST) -> bool:
    return isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"


def statements(node: ast.AST, *, inside: bool = False) -> Iterator[tuple[ast.AST, bool]]:
    """Yield every node that runs, and whether it does so inside a function."""
    for child in ast.iter_child_nodes(node):
        if not for_types_only(child):
            yield child, inside
            function = isinstance(child, (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda))
            yield from statements(child, inside=inside or function)


@cache
def imports(module: str) -> tuple[Import, ...]:
    found = []
    for node, inside in statements(tree(module)):
        names: list[str] = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module:
            names = sorted({imported(node.module, alias.name) for alias in node.names})
        found += [Import(module, name, inside=inside) for name in names]
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
    for module in PATHS:
        for entry in imports(module):
            if entry.name.split(".")[0] == package:
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
        "axis_maps",
    }


def level(module: str) -> int:
    """Return the place of a module's layer, or that of its folder's star."""
    places = {name: place for place, layer in enumerate(LAYERS) for name in layer}
    return places[module if module in places else f"{module.rpartition('.')[0]}.*"]


def test_shapes_for_a_twin_are_never_handed_around() -> None:
    """Those of the original are wrong for what was cut: `derived_twin` finds a graph's own."""
    names = {
        module: {node.id for node in ast.walk(tree(module)) if isinstance(node, ast.Name)}
        for module in PATHS
    }
    assert {m for m, used in names.items() if "build_twin" in used} == {"twin", "program"}


def test_every_layer_is_there_and_every_module_has_one() -> None:
    listed = [name for layer in LAYERS for name in layer]
    assert len(listed) == len(set(listed))
    assert {name for name in listed if not name.endswith(".*")} <= PATHS.keys()
    assert all(level(module) >= 0 for module in PATHS if module)


def test_imports_only_go_down() -> None:
    upwards = [
        f"{module} imports {target}"
        for module in PATHS
        for target in map(of_package, imports(module))
        if target is not None
        and (module, target) not in ENTRANCES
        and level(module) <= level(target)
    ]
    assert not upwards


def test_only_the_graph_touches_graphsurgeon() -> None:
    assert {entry.module for entry in users_of("onnx_graphsurgeon")} == SURGEON


def test_torch_stays_where_it_is_needed() -> None:
    users = list(users_of("torch"))
    assert {entry.module for entry in users if not entry.inside} == TORCH
    inside = {entry.module for entry in users if entry.inside and entry.module not in TORCH}
    assert {module for module in inside if not module.startswith("ops.")} <= TORCH_INSIDE


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
            if target is not None and not entry.inside:
                queue.append(target)
    assert not seen & TORCH


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


def test_the_public_names_are_eight() -> None:
    commands = ["apply", "compress", "inspect", "make_plan", "measure_sensitivity", "score"]
    assert obc_onnx.__all__ == ["Result", "__version__", *commands]
    assert {*obc_onnx._DEFINED_IN, "__version__"} == set(obc_onnx.__all__)
    loose = {
        name
        for name in vars(obc_onnx)
        if not name.startswith("_")
        and name not in {"annotations", "import_module", "TYPE_CHECKING", "Any"}
    }
    assert loose <= {*obc_onnx.__all__, *(module.split(".")[0] for module in PATHS)}
    for name in obc_onnx.__all__:
        assert getattr(obc_onnx, name) is not None


def test_an_unknown_name_of_the_package_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="'prune'"):
        obc_onnx.prune  # noqa: B018
