"""Let other programs take what compression writes, and print a table of what they say.

    python tools/try_consumers.py MODEL... [--target 0.7] [--programs FOLDER]

Each model is cut by the size of its weights, without data. Then `polygraphy inspect model`,
`onnxslim` and ONNX Runtime's `quantize_static` are given the result. A program that refuses a
result is given the original too. FOLDER is where the first two are installed, such as the `bin` of
an environment of its own.
"""

from __future__ import annotations

import argparse
import subprocess
import tempfile
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from onnxruntime import quantization
from onnxruntime.quantization.calibrate import CalibrationDataReader

from obc_onnx.errors import InfeasibleTargetError, ObcError
from obc_onnx.graph.feeds import random_feed
from obc_onnx.graph.model import Graph
from obc_onnx.graph.shapes import input_shapes
from obc_onnx.planning.budget import Budget
from obc_onnx.planning.scope import Scope
from obc_onnx.run.api import compress

if TYPE_CHECKING:
    from collections.abc import Callable

    import numpy as np
    from numpy.typing import NDArray

    from obc_onnx.report.result import Result

SECONDS = 300
LONGEST = 80
"""Letters of a refusal that are shown."""


class Once(CalibrationDataReader):  # type: ignore[misc]  # it comes without types
    """Feeds one run of random numbers: whether a file is taken does not depend on them."""

    def __init__(self, path: Path) -> None:
        graph = Graph.load(path)
        self._feeds = iter([random_feed(graph, input_shapes(graph), 0)])

    def get_next(self) -> dict[str, NDArray[np.generic]] | None:
        """Return the run, and nothing after it."""
        return next(self._feeds, None)


def run(*command: str | Path) -> str:
    """Run a program; return the last line of what it says where it fails, and nothing else."""
    done = subprocess.run(command, capture_output=True, text=True, timeout=SECONDS, check=False)
    said = (done.stderr.strip() or done.stdout.strip() or "no reason").splitlines()
    return said[-1] if done.returncode else ""


def quantise(path: Path, folder: Path) -> str:
    """Quantise a file; return why that fails, or nothing."""
    own = folder / "quantised.onnx"
    try:
        quantization.quantize_static(path, own, Once(path))
    except (ObcError, ValueError, RuntimeError, KeyError) as error:
        return str(error).strip().splitlines()[-1]
    return run_refusal(own)


def run_refusal(path: Path) -> str:
    """Return why a file does not load, or nothing."""
    try:
        Graph.load(path)
    except ObcError as error:
        return str(error)
    return ""


def programs_of(folder: Path) -> dict[str, Callable[[Path, Path], str]]:
    """Return the programs, by name; each takes a file and a folder, and says why it refuses."""
    return {
        "polygraphy": lambda path, _: run(folder / "polygraphy", "inspect", "model", path),
        "onnxslim": lambda path, own: run(folder / "onnxslim", path, own / "slim.onnx"),
        "quantize_static": quantise,
    }


def main() -> None:
    """Print a row for each model."""
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("models", nargs="+", type=Path)
    options.add_argument("--target", default=0.7, type=float)
    options.add_argument("--programs", default=Path(), type=Path)
    asked = options.parse_args()
    programs = programs_of(asked.programs)
    print(f"| model | {' | '.join(programs)} |")
    print(f"|---|{'---|' * len(programs)}")
    for model in asked.models:
        with tempfile.TemporaryDirectory() as made:
            folder = Path(made)
            result = folder / "result.onnx"
            try:
                smaller(model, asked.target).save(result)
            except InfeasibleTargetError as error:
                print(f"| {model.stem} | {str(error)[:LONGEST]} |", flush=True)
                continue
            cells = [said(program, result, model, folder) for program in programs.values()]
        print(f"| {model.stem} | {' | '.join(cells)} |", flush=True)


def smaller(model: Path, target: float) -> Result:
    """Cut a model; channels under norms too, where the target is out of reach without.

    Raises:
        InfeasibleTargetError: It is out of reach with them too.
    """
    cut = partial(compress, model, recover="none", latency=False)
    try:
        return cut(budget=target)
    except InfeasibleTargetError:
        return cut(budget=Budget(target, scope=Scope(allow_inexact=True)))


def said(program: Callable[[Path, Path], str], result: Path, original: Path, folder: Path) -> str:
    """Return what a program makes of a result, and of the original where it refuses that.

    Args:
        program: Takes a file.
        result: The file.
        original: What it was made from.
        folder: For what is written on the way.
    """
    refusal = program(result, folder)
    if not refusal:
        return "yes"
    same = "as the original" if program(original, folder) else "but takes the original"
    return f"no, {same}: {refusal[:LONGEST]}"


if __name__ == "__main__":
    main()
