"""Score the units of a model: which criterion, on which samples, and scores as a file."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from obc_onnx.data import UNREADABLE
from obc_onnx.errors import RequestError
from obc_onnx.files import replacing
from obc_onnx.saliency import DATA_FREE, Criterion, Scene, make_criterion

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from obc_onnx.coupling import Coupling
    from obc_onnx.data import Samples
    from obc_onnx.saliency import Scoring

_FACTS = "obc-onnx"
"""The array of a file that says what the others are; names of groups have a colon."""
_KEYS = ("criterion", "model_sha256", "seed")


@dataclass(frozen=True)
class Scores:
    """A saliency for every unit of a model.

    Attributes:
        model_sha256: Of the model.
        criterion: What gave them.
        seed: Of every random choice.
        groups: For each group by name, shape [n_units], float64.
    """

    model_sha256: str
    criterion: str
    seed: int
    groups: dict[str, NDArray[np.float64]]

    def save(self, path: str | Path) -> None:
        """Write an `.npz` with one array per group."""
        facts = {key: getattr(self, key) for key in _KEYS}
        arrays: dict[str, Any] = {_FACTS: np.array(json.dumps(facts, sort_keys=True))}
        with replacing(Path(path)) as temporary, temporary.open("wb") as file:
            np.savez(file, **{**arrays, **self.groups})

    @classmethod
    def load(cls, path: str | Path) -> Scores:
        """Read what `save` wrote.

        Raises:
            RequestError: It is missing, or no file of scores.
        """
        try:
            with np.load(path) as archive:
                arrays = dict(archive)
            facts = json.loads(str(arrays.pop(_FACTS)))
            own = {key: facts[key] for key in _KEYS}
        except (*UNREADABLE, KeyError, TypeError) as error:
            raise RequestError(
                f"'{path}' is no file of scores, as `obc-onnx score` writes"
            ) from error
        return cls(**own, groups=arrays)

    def check(self, coupling: Coupling) -> None:
        """Check that the scores are of a model.

        Raises:
            RequestError: They are of another one.
        """
        sha256 = coupling.graph.sha256
        sizes = {group.name: (group.size,) for group in coupling.groups}
        own = {name: array.shape for name, array in self.groups.items()}
        if self.model_sha256 != sha256 or sizes != own:
            raise RequestError(
                f"the scores are of a model with sha256 {self.model_sha256[:12]}..., but this one "
                f"has {sha256[:12]}..."
            )
        if not all(np.isfinite(array).all() for array in self.groups.values()):
            raise RequestError("some of the scores are not finite")


def choose_criterion(name: str | None, samples: Samples | None) -> Criterion:
    """Return the criterion of a name; without one, what suits the samples.

    Raises:
        RequestError: It is not known, or needs samples and there are none.
    """
    chosen = name or ("jacobian" if samples is not None else DATA_FREE)
    criterion = make_criterion(chosen)
    if criterion.needs_data and samples is None:
        raise RequestError(
            f"criterion '{chosen}' needs samples: give --data, or use --criterion {DATA_FREE}"
        )
    return criterion


def make_scene(
    coupling: Coupling, samples: Samples | None, scoring: Scoring, seed: int, device: str
) -> Scene:
    """Draw the samples to score on: whole batches where the model's batch is static."""
    if samples is not None:
        order = np.random.default_rng(seed).permutation(len(samples))
        n_scored = scoring.n_samples
        if coupling.graph.batch is not None:
            n_scored = max(n_scored // coupling.graph.batch, 1) * coupling.graph.batch
        samples = samples.part(np.sort(order[:n_scored]))
    return Scene(coupling, samples, seed, device, scoring)
