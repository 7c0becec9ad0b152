"""Criteria: functions that give every unit of every group a saliency.

`CRITERIA` names them all. Most modules load torch, so they are imported on demand.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, NamedTuple

from obc_onnx.errors import RequestError
from obc_onnx.installation import require_torch

if TYPE_CHECKING:
    from obc_onnx.saliency.criterion import Criterion
    from obc_onnx.saliency.options import Ranking


class _Entry(NamedTuple):
    """Where a criterion is, and what is known of it without loading it.

    Attributes:
        ranking: How units of different groups are best compared; docs/criteria.md has the figures.
    """

    module: str
    class_name: str
    ranking: Ranking = "global"


_TABLE: dict[str, _Entry] = {
    "jacobian": _Entry("jacobian", "Jacobian", "per-cost"),
    "taylor": _Entry("gradients", "Taylor"),
    "taylor-group": _Entry("jacobian", "GroupTaylor", "per-cost"),
    "fisher": _Entry("gradients", "Fisher"),
    "group-obs": _Entry("obs", "GroupObs"),
    "activation": _Entry("activations", "ActivationNorm"),
    "variance": _Entry("activations", "Variance"),
    "apoz": _Entry("activations", "Apoz"),
    "l1": _Entry("magnitude", "L1"),
    "l2": _Entry("magnitude", "L2"),
    "lamp": _Entry("magnitude", "Lamp"),
    "bn-scale": _Entry("magnitude", "NormScale"),
    "fpgm": _Entry("filters", "Fpgm"),
    "whc": _Entry("filters", "Whc"),
    "random": _Entry("magnitude", "Random"),
}
CRITERIA = tuple(_TABLE)
DATA_FREE = "l2"
_WITHOUT_TORCH = frozenset({"filters", "magnitude"})
"""Modules that load no torch."""


def make_criterion(name: str) -> Criterion:
    """Return a criterion by name.

    Raises:
        RequestError: There is none of that name.
        InstallationError: It runs in torch, which is not installed.
    """
    if name not in _TABLE:
        raise RequestError(f"criterion '{name}' is not known: choose from {', '.join(CRITERIA)}")
    entry = _TABLE[name]
    if entry.module not in _WITHOUT_TORCH:
        require_torch(f"criterion '{name}'")
    module = importlib.import_module(f"obc_onnx.saliency.{entry.module}")
    made: Criterion = getattr(module, entry.class_name)()
    return made


def usual_ranking(name: str) -> Ranking:
    """Return how units of different groups are best compared by a criterion of some name.

    Scores may come from elsewhere, and have a name that is none of ours.
    """
    return _TABLE[name].ranking if name in _TABLE else "global"
