"""Try what it is told to on standard input, one case a line; a crash ends this process alone.

Each line is `KIND CASE`, a case being a number or a file that holds one; the answer is one line of
JSON with the class of what happened.
"""

from __future__ import annotations

import contextlib
import json
import math
import signal
import sys
import tempfile
import traceback
import zlib
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from fuzz import file_mutations
from fuzz.model_mutations import BESIDE, mutated_model
from fuzz.run import FAULT, READY
from helpers import make_feed

from obc_onnx.errors import InfeasibleTargetError, ObcError, VerificationError
from obc_onnx.graph.model import Graph
from obc_onnx.graph.soundness import most_bytes
from obc_onnx.planning.budget import Budget
from obc_onnx.planning.scope import Scope
from obc_onnx.run.api import compress
from obc_onnx.run.inspection import inspect
from obc_onnx.run.strip import strip

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

KILO = 1024
CPU_SECONDS = 60.0
"""After which a case hangs: those that wait for nothing are found by the time that they take."""
ENDINGS = {"model": ".onnx", "checkpoint": ".pt"}
SHARES = (0.1, 0.1, 0.05, 0.1)
"""How many of the models that can be inspected are stripped too; split into layers of low rank; cut
by branches; and how many are given samples, to be scored, repaired and run."""
BESIDE_BYTES = 192
N_SAMPLES, MOST_DRAWN = 20, 2**20
"""Samples of a model; elements of one."""
MEMORY = Path("/proc/self/status")
PEAK = Path("/proc/self/clear_refs")
"""What starts the peak of this process's memory from where it is now, on Linux."""
FROM_NOW = "5"


class Found(NamedTuple):
    """What became of a case: its class, and what was said or where it failed."""

    reached: str
    said: str


def memory(entry: str) -> int:
    """Return how many bytes of memory are in use (`VmRSS`), or were at most (`VmHWM`)."""
    lines = MEMORY.read_text(encoding="ascii").splitlines()
    return KILO * next(int(line.split()[1]) for line in lines if line.startswith(entry))


@contextlib.contextmanager
def bounded(n_bytes: int) -> Iterator[None]:
    """Check how much memory a block takes for a file of some bytes, where the system tells."""
    if not PEAK.exists():
        yield
        return
    PEAK.write_text(FROM_NOW, encoding="ascii")
    before = memory("VmRSS")
    yield
    grown = memory("VmHWM") - before
    assert grown <= most_bytes(n_bytes), f"{grown} bytes for a file of {n_bytes}"


def try_model(path: Path, rng: np.random.Generator | None) -> Found:
    """Inspect a model, and do more with it.

    Args:
        path: Of the model.
        rng: Chooses what is done with a model beside; None tries all.
    Returns:
        What became of the last step.
    """
    inspect(path)
    more = [strip_model, partial(compress_model, low_rank=True), partial(with_samples, depth=True)]
    steps = [*more, with_samples, compress_model]
    if rng is not None:
        *chosen, sampled = rng.random(len(SHARES)) < SHARES
        steps = [more[place] for place in np.flatnonzero(chosen)]
        steps.append(with_samples if sampled else compress_model)
    return [attempted(step, path) for step in steps][-1]


def attempted(step: Callable[[Path], None], path: Path) -> Found:
    """Do one thing with a model that can be inspected."""
    try:
        step(path)
    except VerificationError as error:
        return Found("unverified", str(error))
    except InfeasibleTargetError as error:
        return Found("infeasible", str(error))
    except ObcError as error:
        return Found("inspected", str(error))
    return Found("compressed", "")


def strip_model(path: Path) -> None:
    """Strip a model, and write the result."""
    strip(path).save(path.with_name("stripped.onnx"))


def with_samples(path: Path, **budget: Any) -> None:
    """Draw samples for a model, where they are small, and compress it with them."""
    graph, data = Graph.load(path), path.with_suffix(".npz")
    sizes = [size for port in graph.inputs for size in port.shape or () if isinstance(size, int)]
    if math.prod(sizes) > MOST_DRAWN:
        compress_model(path, **budget)
        return
    np.savez(data, **make_feed(graph, np.random.default_rng(0), N_SAMPLES))
    compress_model(path, data, **budget)


def compress_model(path: Path, data: Path | None = None, **more: Any) -> None:
    """Compress a model, write the result, and read that again."""
    budget = Budget(target_macs=0.7, scope=Scope(min_channels=1, round_to=1), **more)
    result = compress(path, data=data, budget=budget, recover_minutes=0)
    small = path.with_name("small.onnx")
    result.save(small, small.with_suffix(".json"))
    inspect(small)


def try_file(kind: str, path: Path, rng: np.random.Generator | None) -> Found:
    """Read a file as commands do."""
    if kind == "model":
        return try_model(path, rng)
    if kind == "checkpoint":
        file_mutations.read_checkpoint(path)
    else:
        file_mutations.KINDS[kind][1](path)
    return Found("read", "")


def make(kind: str, case: str, folder: Path) -> tuple[bytes, np.random.Generator | None]:
    """Return what a case holds, and where its random choices come from: a file has none.

    Args:
        kind: Of the case.
        case: A number, or a file.
        folder: Of temporary files.
    """
    if not case.isdecimal():
        return Path(case).read_bytes(), None
    rng = np.random.default_rng([zlib.crc32(kind.encode()), int(case)])
    if kind == "model":
        return mutated_model(rng), rng
    if kind == "checkpoint":
        return file_mutations.mutated_checkpoint(rng, folder), rng
    return file_mutations.KINDS[kind][0](rng), rng


def attempt(kind: str, case: str, folder: Path) -> Found:
    """Try a case."""
    content, rng = make(kind, case, folder)
    path = folder / f"case{ENDINGS.get(kind) or file_mutations.KINDS[kind][2]}"
    path.write_bytes(content)
    try:
        with bounded(len(content)):
            return try_file(kind, path, rng)
    except ObcError as error:
        return Found("refused", str(error))
    except BaseException as error:  # noqa: BLE001 - whatever comes up is what is looked for
        where = [f"{f.name}:{f.lineno}" for f in traceback.extract_tb(error.__traceback__)]
        said = f"{type(error).__name__}: {error}"
        return Found(FAULT, f"{said[:300]} [{' '.join(where[-4:])}]")


def main() -> None:
    """Answer every line."""
    answers = sys.stdout
    with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stdout(sys.stderr):
        (Path(folder) / BESIDE).write_bytes(bytes(range(BESIDE_BYTES)))
        answers.write(f"{READY}\n")
        answers.flush()
        for line in sys.stdin:
            signal.setitimer(signal.ITIMER_PROF, CPU_SECONDS)  # whose signal ends the process
            kind, _, case = line.strip().partition(" ")
            answers.write(json.dumps(attempt(kind, case, Path(folder))._asdict()) + "\n")
            answers.flush()


if __name__ == "__main__":
    main()
