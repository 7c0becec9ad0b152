"""Try what it is told to on standard input, one case a line; a crash ends this process alone.

Each line is `KIND NUMBER`; the answer is one line of JSON with the class of what happened.
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

sys.path[:0] = [str(Path(__file__).parents[1])]

import numpy as np
from fuzz import file_mutations
from fuzz.model_mutations import mutated_model

from obc_onnx.errors import InfeasibleTargetError, ObcError, VerificationError
from obc_onnx.graph.soundness import most_bytes
from obc_onnx.planning.budget import Budget
from obc_onnx.run.api import compress, inspect

KILO = 1024
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
    result = compress(path, budget=Budget(target_macs=0.7, min_channels=1, round_to=1))
    result.save(path.with_name("small.onnx"), path.with_name("small.json"))
    inspect(path.with_name("small.onnx"))
    return "compressed"


def attempt(kind: str, number: int, folder: Path) -> dict[str, str]:
    """Make a case and try it.

    Returns:
        Its class, and what was said or where it failed.
    """
    rng = np.random.default_rng([zlib.crc32(kind.encode()), number])
    path = folder / "case"
    try:
        if kind == "model":
            content = mutated_model(rng)
            path = path.with_suffix(".onnx")
            path.write_bytes(content)
            return {"class": try_model(content, path, rng), "said": ""}
        if kind == "checkpoint":
            path.write_bytes(file_mutations.mutated_checkpoint(rng, folder))
            file_mutations.read_checkpoint(path)
        else:
            make, read, ending = file_mutations.KINDS[kind]
            path = path.with_suffix(ending)
            path.write_bytes(make(rng))
            read(path)
    except VerificationError as error:
        return {"class": "FAULT", "said": f"a check failed: {error}"}
    except InfeasibleTargetError as error:
        return {"class": "infeasible", "said": str(error)}
    except ObcError as error:
        return {"class": "refused", "said": str(error)}
    except BaseException as error:
        where = [f"{f.name}:{f.lineno}" for f in traceback.extract_tb(error.__traceback__)]
        said = f"{type(error).__name__}: {error}"
        return {"class": "FAULT", "said": f"{said[:300]} [{' '.join(where[-4:])}]"}
    return {"class": "read", "said": ""}


def main() -> None:
    """Answer every line."""
    answers = sys.stdout
    with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stdout(sys.stderr):
        for line in sys.stdin:
            kind, number = line.split()
            print(json.dumps(attempt(kind, int(number), Path(folder))), file=answers, flush=True)


if __name__ == "__main__":
    main()
