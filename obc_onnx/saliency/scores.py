"""Score the units of a model: which criterion, on which samples, and scores as a file."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from obc_onnx.branches.find import find_branches
from obc_onnx.errors import DataError, RequestError
from obc_onnx.files import check_regular, replacing
from obc_onnx.saliency.criteria import DATA_FREE, make_criterion
from obc_onnx.saliency.criterion import COUPLED, Criterion, Scene
from obc_onnx.saliency.options import Scoring
from obc_onnx.samples.npz import UNREADABLE, read_npz
from obc_onnx.surgery.bypass import bypassed, without_gone

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray

    from obc_onnx.branches.left import Left
    from obc_onnx.coupling.model import Coupling
    from obc_onnx.saliency.criterion import Saliency
    from obc_onnx.samples.samples import Samples

_FACTS = "obc-onnx"
"""The array of a file that says what the others are; names of groups have a colon."""
_KEYS = ("criterion", "model_sha256", "seed", "scoring")


@dataclass(frozen=True)
class Scores:
    """A saliency for every unit of a model.

    Attributes:
        model_sha256: Of the model.
        criterion: What gave them.
        seed: Of every random choice.
        scoring: What the criterion looked at: the fields of `Scoring` that it uses.
        groups: For each group by name, shape [n_units], float64; for each branch that was scored
            by its name, shape [1].
    """

    model_sha256: str
    criterion: str
    seed: int
    scoring: dict[str, Any]
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
        check_regular(Path(path), "scores", RequestError)
        try:
            arrays = read_npz(Path(path))
            facts = json.loads(str(arrays.pop(_FACTS)))
            own = {key: facts[key] for key in _KEYS}
        except (*UNREADABLE, DataError, KeyError, TypeError) as error:
            raise _no_scores(path) from error
        names = (own["model_sha256"], own["criterion"])
        vectors = [a for a in arrays.values() if isinstance(a, np.ndarray)]
        floats = all(array.dtype == np.float64 and array.ndim == 1 for array in vectors)
        if not floats or len(vectors) < len(arrays) or not all(isinstance(n, str) for n in names):
            raise _no_scores(path)
        return cls(**own, groups=arrays)

    def check(self, coupling: Coupling) -> None:
        """Check that the scores are of a model.

        Raises:
            RequestError: They are of another one.
        """
        sha256 = coupling.graph.sha256
        if self.model_sha256 != sha256:
            raise RequestError(
                f"the scores are of a model with sha256 {self.model_sha256[:12]}..., but this one "
                f"has {sha256[:12]}..."
            )
        sizes = {group.name: group.size for group in coupling.groups}
        if self.groups.keys() - sizes.keys():
            sizes |= {branch.name: 1 for branch in find_branches(coupling)}
        for name, array in self.groups.items():
            if sizes.get(name) != len(array):
                raise RequestError(
                    f"the scores have {len(array)} units for group '{name}', but the model has "
                    f"{sizes.get(name, 'no such group')}: score it again, with the same sizes of "
                    f"inputs"
                )
        if not all(np.isfinite(array).all() for array in self.groups.values()):
            raise RequestError("some of the scores are not finite")


def choose_criterion(
    name: str | None, samples: Samples | None, scoring: Scoring, *, depth: bool = False
) -> Criterion:
    """Return the criterion of a name; without one, what suits the samples.

    Args:
        name: Of the criterion.
        samples: To score on.
        scoring: How it is to look at them.
        depth: Whether branches are scored too.

    Raises:
        RequestError: It is not known, needs samples and there are none, or is asked for something
            that it does not look at.
    """
    chosen = name or ("jacobian" if samples is not None else DATA_FREE)
    criterion = make_criterion(chosen)
    if criterion.needs_data and samples is None:
        raise RequestError(
            f"criterion '{chosen}' needs samples: give `data`, or use `criterion='{DATA_FREE}'`"
        )
    if depth:
        _check_depth(criterion, scoring)
    ignored = [field for field in asked_of(scoring) if field not in criterion.uses]
    if ignored:
        named = ", ".join(
            _COUPLES if field == COUPLED else f"`Scoring.{field}`" for field in ignored
        )
        raise RequestError(
            f"criterion '{chosen}' does not look at {named}: leave that out, or use another "
            f"`criterion`"
        )
    return criterion


def _check_depth(criterion: Criterion, scoring: Scoring) -> None:
    """Check that branches and units are scored on one scale."""
    if not criterion.scores_branches:
        raise RequestError(
            f"criterion '{criterion.name}' says nothing of branches: `Budget.depth` takes "
            f"'jacobian' or 'taylor-group', and samples"
        )
    if scoring.normalizer != "none":
        raise RequestError(
            f"`Scoring(normalizer='{scoring.normalizer}')` scales the scores of each group, and a "
            f"branch has none: leave it out, or `Budget.depth`"
        )


_COUPLES = f"`Scoring(reduction='{COUPLED}')`"


def score_units(
    coupling: Coupling,
    samples: Samples | None,
    criterion: str | None,
    scoring: Scoring,
    seed: int,
    device: str,
    *,
    depth: bool = False,
) -> Scores:
    """Score every unit of a whole model; `choose_criterion` says what is refused."""
    chosen = choose_criterion(criterion, samples, scoring, depth=depth)
    scene = make_scene(coupling, samples, scoring, seed, device, depth=depth)
    found = chosen.score(scene, {})
    return Scores(coupling.graph.sha256, chosen.name, seed, used_of(chosen, scoring), dict(found))


def score_left(
    criterion: Criterion,
    scene: Scene,
    left: Left,
    repair: Callable[[Left], Coupling] | None = None,
) -> Saliency:
    """Score what is left of a network.

    Args:
        criterion: What scores.
        scene: Of the whole network.
        left: What is left of it.
        repair: Gives the network without branches the weights that repair would; None leaves them.
    """
    if left.is_whole:
        return criterion.score(scene, {})
    network = repair(left) if repair is not None else bypassed(scene.coupling, left.stand_ins)
    if network is not scene.coupling:
        scene = scene.holding(network)
    keep = without_gone(network, left.keep)
    return criterion.score(scene.without_branches(left.stand_ins), keep)


def asked_of(scoring: Scoring) -> list[str]:
    """List the fields that differ from the defaults; "coupled" stands for that reduction."""
    usual = Scoring()
    asked = [f.name for f in fields(Scoring) if getattr(scoring, f.name) != getattr(usual, f.name)]
    return [COUPLED if scoring.reduction == COUPLED and f == "reduction" else f for f in asked]


def used_of(criterion: Criterion, scoring: Scoring) -> dict[str, Any]:
    """Return the fields of a scoring that a criterion looks at, as plain data."""
    return {name: value for name, value in asdict(scoring).items() if name in criterion.uses}


def make_scene(
    coupling: Coupling,
    samples: Samples | None,
    scoring: Scoring,
    seed: int,
    device: str,
    *,
    depth: bool = False,
) -> Scene:
    """Draw the samples to score on: whole batches where the model's batch is static."""
    if samples is not None:
        samples = samples.draw(scoring.n_samples, coupling.graph.batch, seed)
    branches = find_branches(coupling) if depth else ()
    return Scene(coupling, samples, seed, device, scoring, branches=branches)


def _no_scores(path: str | Path) -> RequestError:
    return RequestError(f"'{path}' is no file of scores, as `score` writes")
