"""Scores of a criterion in one call, and the values that it looks at."""

from __future__ import annotations

from typing import TYPE_CHECKING

from onnx.reference import ReferenceEvaluator

from obc_onnx.saliency.criteria import make_criterion
from obc_onnx.saliency.criterion import Scene
from obc_onnx.saliency.options import Scoring

if TYPE_CHECKING:
    import numpy as np
    from nets import Case

    from obc_onnx.samples.samples import Samples


def score_by(
    criterion: str, case: Case, samples: Samples | None = None, seed: int = 0, **scoring: object
) -> dict[str, np.ndarray]:
    """Score every group; settings that are not given are those of the library."""
    scene = Scene(case.coupling, samples, seed, scoring=Scoring(**scoring))
    return make_criterion(criterion).score(scene, {})


def tensor(case: Case, name: str, samples: Samples) -> np.ndarray:
    """Return what flows through a value, by onnx's own reference."""
    model = case.graph.to_model()
    model.graph.output.add().name = name
    (found,) = ReferenceEvaluator(model).run([name], dict(samples.inputs))
    return found
