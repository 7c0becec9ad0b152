"""Files of every other kind that commands read, a few edits away from valid ones."""

from __future__ import annotations

import io
import json
import tarfile
from functools import cache
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from fuzz.model_mutations import mutated_bytes
from helpers import analyse
from sample_files import labelled, npy, png
from small import chain, half_plan, images

from obc_onnx.graph.model import Graph
from obc_onnx.planning.plan import PruningPlan
from obc_onnx.planning.scope import read_config
from obc_onnx.run.api import score
from obc_onnx.saliency.scores import Scores
from obc_onnx.samples.read import load_samples
from obc_onnx.training.keeper import Keeper

if TYPE_CHECKING:
    from pathlib import Path

STRANGE: tuple[Any, ...] = (
    *(None, True, -1, 0, 2**63, 1e400, float("nan"), "", "a:0", [], [[]], {}, [-1], [1, 1]),
    *({"size": 3}, {"kept": []}, "x" * 3000, [2**40]),
)
"""What a part of a plan is changed to."""
TOML = b'["a:*"]\nmin = 3\nmax = 0.5\n[b]\nround_to = 4\nkeep = true\n'
"""Valid limits."""
DEEP = 5000
"""How deep lists are nested that no parser should follow."""


@cache
def graph() -> Graph:
    """The model that all files are for."""
    return Graph.from_model(chain())


def mutated_plan(rng: np.random.Generator) -> bytes:
    """Change a part of a plan, or its bytes."""
    text = half_plan().to_json()
    if rng.random() < 0.3:
        return mutated_bytes(text.encode(), rng)
    if rng.random() < 0.05:
        return b"[" * DEEP
    plan = json.loads(text)
    holder, key = plan, sorted(plan)[rng.integers(len(plan))]
    while isinstance(holder[key], dict) and holder[key] and rng.random() < 0.7:
        holder, key = holder[key], sorted(holder[key])[rng.integers(len(holder[key]))]
    if rng.random() < 0.2:
        del holder[key]
    else:
        holder[key] = STRANGE[rng.integers(len(STRANGE))]
    return json.dumps(plan).encode()


def mutated_limits(rng: np.random.Generator) -> bytes:
    """Change bytes of limits, or nest them."""
    if rng.random() < 0.1:
        return b"a = " + b"[" * DEEP
    return mutated_bytes(TOML, rng)


def mutated_archive(rng: np.random.Generator) -> bytes:
    """Change an `.npz` of samples, or what an array in it claims."""
    held = io.BytesIO()
    np.savez(held, x=images(4), labels=np.arange(4))
    content = held.getvalue()
    if rng.random() < 0.5:
        return mutated_bytes(content, rng)
    return content.replace(
        b"(4, 3, 8, 8)", (b"(9**9,)     ", b"(4, 3, 8, -8", b"'abcdefghij'")[rng.integers(3)]
    )


@cache
def _scores() -> Scores:
    return score(graph())


def mutated_scores(rng: np.random.Generator) -> bytes:
    """Change bytes of scores."""
    held, own = io.BytesIO(), _scores()
    facts = {k: getattr(own, k) for k in ("criterion", "model_sha256", "seed", "scoring")}
    if rng.random() < 0.5:
        facts[sorted(facts)[rng.integers(len(facts))]] = STRANGE[rng.integers(len(STRANGE))]
        np.savez(held, **{"obc-onnx": np.array(json.dumps(facts)), **own.groups})
        return held.getvalue()
    np.savez(held, **{"obc-onnx": np.array(json.dumps(facts)), **own.groups})
    return mutated_bytes(held.getvalue(), rng)


def mutated_tar(rng: np.random.Generator) -> bytes:
    """Change bytes of a `.tar`, or of one of its members."""
    members = (
        {**labelled(range(3))}
        if rng.random() < 0.5
        else {f"{i}.x.npy": npy(images()[i]) for i in range(3)}
    )
    if rng.random() < 0.5:
        name = sorted(members)[rng.integers(len(members))]
        members[name] = mutated_bytes(members[name], rng)
        return _tar(members)
    return mutated_bytes(_tar(members), rng)


def _tar(members: dict[str, bytes]) -> bytes:
    held = io.BytesIO()
    with tarfile.open(fileobj=held, mode="w") as file:
        for name, content in members.items():
            entry = tarfile.TarInfo(name)
            entry.size = len(content)
            file.addfile(entry, io.BytesIO(content))
    return held.getvalue()


def mutated_picture(rng: np.random.Generator) -> bytes:
    """Change bytes of a picture of any kind."""
    kind = ("png", "jpeg", "bmp", "webp")[rng.integers(4)]
    return mutated_bytes(png(int(rng.integers(9)), kind), rng)


class _Folder:
    """Where a checkpoint lies."""

    resume = True

    def __init__(self, path: Path) -> None:
        self._path = path

    def checkpoint(self, _stage: str) -> Path:
        return self._path

    def keep_metrics(self, _stage: str, _lines: object) -> None:
        """Keep nothing."""


STATE = {
    "student": {"w": torch.arange(6.0).reshape(2, 3)}, "optimizer": {"state": {}, "lr": 0.1},
    "precision": {}, "history": [{"epoch": 1}], "trials": [], "losses": [1.0], "best": None,
    "average": None, "penalty": None,
}  # fmt: skip
"""A state such as training keeps."""


def mutated_checkpoint(rng: np.random.Generator, folder: Path) -> bytes:
    """Change bytes of a checkpoint."""
    path = folder / "whole.pt"
    Keeper(_Folder(path), "").save(STATE)
    return mutated_bytes(path.read_bytes(), rng)


def read_checkpoint(path: Path) -> None:
    """Read one; what is read has to be what was written."""
    state = Keeper(_Folder(path), "").load()
    assert state is not None
    assert torch.equal(state["student"]["w"], STATE["student"]["w"])
    assert {**state, "student": None} == {**STATE, "student": None}


def read_plan(path: Path) -> None:
    """Read a plan and follow it."""
    plan = PruningPlan.load(path)
    plan.check_model(graph().sha256, "model")
    plan.keep(_coupling())


@cache
def _coupling() -> Any:
    return analyse(graph()).coupling


def read_scores(path: Path) -> None:
    """Read scores and compare them with their model."""
    Scores.load(path).check(_coupling())


def read_samples(path: Path) -> None:
    """Read all samples."""
    load_samples(path, graph()).feed(slice(None))


def read_picture(path: Path) -> None:
    """Read a picture as the only sample."""
    folder = path.with_suffix(".folder")
    folder.mkdir(exist_ok=True)
    (folder / "a.png").write_bytes(path.read_bytes())
    load_samples(folder, graph()).feed(slice(None))


KINDS = {
    "plan": (mutated_plan, read_plan, ".json"),
    "limits": (mutated_limits, read_config, ".toml"),
    "archive": (mutated_archive, read_samples, ".npz"),
    "scores": (mutated_scores, read_scores, ".npz"),
    "tar": (mutated_tar, read_samples, ".tar"),
    "picture": (mutated_picture, read_picture, ".png"),
}
"""How each kind is made, read, and called; checkpoints need a folder to be made in."""
