"""Compare the analysis with Torch-Pruning and onnxsim on the same architectures, side by side.

    python tools/compare_peers.py FOLDER [--only PATTERN]... [--json FILE]

FOLDER holds `NAME.EXPORTER.onnx`, where NAME is an architecture of torchvision or timm. The peers
are no dependencies: what is not installed is skipped, and the table says so. To have them all, in
an environment of their own beside this package:

    pip install torch torchvision timm torch-pruning onnxsim

Every measurement runs in a process of its own, so that a peer that crashes costs its cell only.
Channels are counted as positions of the output axes of layers, each set of coupled axes once; a
layer whose outputs are the model's is left out on both sides. The share of params is what is gone
when half of every prunable width is cut.
"""

from __future__ import annotations

import argparse
import fnmatch
import importlib.util
import json
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

REPEATS = 3
TIMEOUT_S = 600
PACKAGES = {"torch-pruning": "torch_pruning", "onnxsim": "onnxsim"}
MANY_OUTPUTS = 1000
"""Layers of this width are taken for classifiers."""


def measure_ours(path: Path) -> dict[str, Any]:
    """Time the coupling; count channels, and the params that half of every group takes along."""
    import numpy as np

    from obc_onnx.coupling.inference import find_coupling
    from obc_onnx.graph.model import Graph
    from obc_onnx.graph.shapes import infer_shapes, input_shapes
    from obc_onnx.ops.catalogue import DEFAULT_RULES

    graph = Graph.load(path)
    shapes = infer_shapes(graph, input_shapes(graph))
    seconds = []
    for _ in range(REPEATS):
        start = time.perf_counter()
        coupling = find_coupling(graph, shapes, DEFAULT_RULES)
        seconds.append(time.perf_counter() - start)
    exact = {group.dim for group in coupling.groups if group.inexact is None}
    free = {group.dim for group in coupling.groups}
    keep = {dim: np.arange(dim.size) >= dim.size // 2 for dim in exact}
    before = coupling.params({})
    return {
        "seconds": min(seconds),
        "channels": _channels(coupling, exact),
        "channels_inexact": _channels(coupling, free),
        "removed": 1 - coupling.params(keep) / before,
    }


def _channels(coupling: Any, dims: set[Any]) -> int:
    from obc_onnx.axes.expressions import leaves

    axes = {
        coupling.axes[role.node.inputs[role.slot]][role.axis]
        for role in coupling.roles
        if role.kind == "writes"
    }
    return sum(axis.size for axis in axes if dims.intersection(leaves(axis)))


def measure_torch_pruning(path: Path) -> dict[str, Any]:
    """Time `build_dependency` and `get_all_groups` on the network's source; count channels."""
    import torch
    import torch_pruning

    from obc_onnx.graph.model import Graph
    from obc_onnx.graph.shapes import input_shapes

    network = _network(path.name.split(".")[0])
    (shape,) = input_shapes(Graph.load(path)).values()
    sample = torch.zeros(1, *shape[1:])
    outputs = [
        module
        for module in network.modules()
        if MANY_OUTPUTS in {getattr(module, "out_features", 0), getattr(module, "out_channels", 0)}
    ]
    seconds, n_channels = [], 0
    for _ in range(REPEATS):
        start = time.perf_counter()
        graph = torch_pruning.DependencyGraph().build_dependency(network, sample)
        groups = list(graph.get_all_groups(ignored_layers=outputs))
        seconds.append(time.perf_counter() - start)
        n_channels = sum(len(group[0].idxs) for group in groups)
    return {"seconds": min(seconds), "channels": n_channels}


def _network(name: str) -> Any:
    import torchvision

    if name in torchvision.models.list_models():
        options = {"weights_backbone": None} if "deeplab" in name else {}
        return torchvision.models.get_model(name, weights=None, **options).eval()
    import timm

    return timm.create_model(name, pretrained=False).eval()


def measure_onnxsim(path: Path) -> dict[str, Any]:
    """Prune half of what it prunes; say what is gone, and whether the result loads and runs."""
    import numpy as np
    import onnx
    import onnxruntime
    import onnxsim

    from obc_onnx.graph.model import Graph
    from obc_onnx.graph.shapes import input_shapes

    model = onnx.load(path)
    start = time.perf_counter()
    pruned = onnxsim.apply_structured_pruning_cpp(model, 0.5)
    seconds = time.perf_counter() - start
    before, after = (_n_params(m) for m in (model, pruned))
    graph = Graph.load(path)
    shapes = input_shapes(graph)
    session = onnxruntime.InferenceSession(
        pruned.SerializeToString(), providers=["CPUExecutionProvider"]
    )
    session.run(None, {name: np.zeros(shape, np.float32) for name, shape in shapes.items()})
    return {"seconds": seconds, "removed": 1 - after / before, "loads": True}


def _n_params(model: Any) -> int:
    import numpy as np

    floats = (1, 10, 11, 16)
    arrays = [tensor for tensor in model.graph.initializer if tensor.data_type in floats]
    return sum(int(np.prod(tensor.dims)) for tensor in arrays)


MEASURES = {
    "ours": measure_ours,
    "torch-pruning": measure_torch_pruning,
    "onnxsim": measure_onnxsim,
}


def in_own_process(which: str, path: Path) -> dict[str, Any]:
    """Run one measurement apart; what goes wrong becomes its result."""
    module = PACKAGES.get(which)
    if module is not None and importlib.util.find_spec(module) is None:
        return {"failed": f"not installed: pip install {which}"}
    command = [sys.executable, __file__, "--measure", which, str(path)]
    try:
        run = subprocess.run(
            command, capture_output=True, text=True, timeout=TIMEOUT_S, check=False
        )
    except subprocess.TimeoutExpired:
        return {"failed": f"not done after {TIMEOUT_S} s"}
    if run.returncode:
        lines = run.stderr.strip().splitlines() or [f"exit code {run.returncode}"]
        return {"failed": lines[-1][:120]}
    found: dict[str, Any] = json.loads(run.stdout.strip().splitlines()[-1])
    return found


def render(rows: list[dict[str, Any]]) -> str:
    """Write a Markdown table and the medians below it."""
    titles = (
        "model", "ours, ms", "Torch-Pruning, ms", "times faster", "our channels",
        "with inexact", "Torch-Pruning's", "our params gone", "onnxsim's", "onnxsim loads",
    )  # fmt: skip
    lines = [" | ".join(titles), " | ".join("---" for _ in titles)]
    ratios = []
    for row in rows:
        ours, pruning, simplifier = (row[name] for name in MEASURES)
        ratio = None
        if "seconds" in ours and "seconds" in pruning:
            ratio = pruning["seconds"] / ours["seconds"]
            ratios.append(ratio)
        cells = [
            row["model"],
            _number(ours, "seconds", 1e3),
            _number(pruning, "seconds", 1e3),
            "" if ratio is None else f"{ratio:.1f}",
            _number(ours, "channels"),
            _number(ours, "channels_inexact"),
            _number(pruning, "channels"),
            _number(ours, "removed"),
            _number(simplifier, "removed"),
            "yes" if simplifier.get("loads") else "no",
        ]
        lines.append(" | ".join(cells))
    table = "\n".join(f"| {line} |" for line in lines)
    if ratios:
        table += f"\n\nmedian: {statistics.median(ratios):.1f} times faster ({len(ratios)} models)"
    failed = [
        f"{row['model']}, {name}: {row[name]['failed']}"
        for row in rows
        for name in MEASURES
        if "failed" in row[name]
    ]
    return "\n".join([table, *(["", "not measured:", *failed] if failed else [])])


def _number(found: dict[str, Any], key: str, factor: float = 1.0) -> str:
    return f"{factor * found[key]:.4g}" if key in found else "-"


def main() -> None:
    """Run from the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--only", action="append", help="Pattern of file names; may be repeated.")
    parser.add_argument("--json", type=Path, help="Also write the rows to this file.")
    parser.add_argument("--measure", choices=list(MEASURES), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.measure:
        print(json.dumps(MEASURES[options.measure](options.folder)))
        return
    rows = []
    for path in sorted(options.folder.glob("*.onnx")):
        if any(fnmatch.fnmatch(path.stem, pattern) for pattern in options.only or ["*"]):
            print(path.stem, file=sys.stderr)
            rows.append({"model": path.stem, **{n: in_own_process(n, path) for n in MEASURES}})
    print(render(rows))
    if options.json:
        options.json.write_text(json.dumps(rows, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
