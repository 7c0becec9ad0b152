"""Try what it is told to on standard input, one case a line; a crash ends this process alone.

Each line is `KIND CASE`, a case being a number or a file that holds one; the answer is one line of JSON with the class of what happened.
"""

from __future__ import annotations

import contextlib
import json
import resource
import sys
import tempfile
import traceback
import zlib
from pathlib import Path

import numpy as np
from fuzz import file_mutations
from fuzz.model_mutations import mutated_model

from obc_onnx.errors import InfeasibleTargetError, ObcError, VerificationError
from obc_onnx.graph.soundness import most_bytes
from obc_onnx.planning.budget import Budget
from obc_onnx.planning.scope import Scope
from obc_onnx.run.api import compress, inspect

KILO = 1024
ENDINGS = {"model": ".onnx", "checkpoint": ".pt"}
COMPRESSED_SHARE = 0.25
"""How many of the models that can be inspected are compressed too."""


def try_model(content: bytes, path: Path, rng: np.random.Generator) -> str:
    """Inspect a model, and compress some."""
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    inspect(path)
    grown = KILO * (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
    assert grown <= most_bytes(len(content)), f"{grown} bytes for a model of {len(content)}"
    if rng.random() > COMPRESSED_SHARE:
        return "inspected"
    result = compress(path, budget=Budget(target_macs=0.7, scope=Scope(min_channels=1, round_to=1)))
    result.save(path.with_name("small.onnx"), path.with_name("small.json"))
    inspect(path.with_name("small.onnx"))
    return "compressed"


def make(kind: str, case: str, folder: Path) -> tuple[bytes, np.random.Generator]:
    """Return what a case holds, and where its random choices come from.

    Args:
        kind: Of the case.
        case: A number, or a file.
        folder: Of temporary files.
    """
    if not case.isdecimal():
        return Path(case).read_bytes(), np.random.default_rng(0)
    rng = np.random.default_rng([zlib.crc32(kind.encode()), int(case)])
    if kind == "model":
        return mutated_model(rng), rng
    if kind == "checkpoint":
        return file_mutations.mutated_checkpoint(rng, folder), rng
    return file_mutations.KINDS[kind][0](rng), rng


def attempt(kind: str, case: str, folder: Path) -> dict[str, str]:
    """Try a case.

    Returns:
        Its class, and what was said or where it failed.
    """
    content, rng = make(kind, case, folder)
    path = folder / f"case{ENDINGS.get(kind) or file_mutations.KINDS[kind][2]}"
    path.write_bytes(content)
    try:
        if kind == "model":
            return {"class": try_model(content, path, rng), "said": ""}
        if kind == "checkpoint":
            file_mutations.read_checkpoint(path)
        else:
            file_mutations.KINDS[kind][1](path)
    except VerificationError as error:
        return {"class": "unverified", "said": str(error)}
    except InfeasibleTargetError as error:
        return {"class": "infeasible", "said": str(error)}
    except ObcError as error:
        return {"class": "refused", "said": str(error)}
    except BaseException as error:  # noqa: BLE001 - whatever comes up is what is looked for
        where = [f"{f.name}:{f.lineno}" for f in traceback.extract_tb(error.__traceback__)]
        said = f"{type(error).__name__}: {error}"
        return {"class": "FAULT", "said": f"{said[:300]} [{' '.join(where[-4:])}]"}
    return {"class": "read", "said": ""}


def main() -> None:
    """Answer every line."""
    answers = sys.stdout
    with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stdout(sys.stderr):
        for line in sys.stdin:
            kind, _, case = line.strip().partition(" ")
            answers.write(json.dumps(attempt(kind, case, Path(folder))) + "\n")
            answers.flush()


if __name__ == "__main__":
    main()
