"""Criteria: functions that give every unit of every group a saliency.

`CRITERIA` names them all. Most modules load torch, so they are imported on demand.
"""

from __future__ import annotations

import importlib
from typing import NamedTuple

from obc_onnx.errors import RequestError
from obc_onnx.saliency.criterion import Criterion, Scene
from obc_onnx.saliency.options import Scoring


class _Entry(NamedTuple):
    """Where a criterion is."""

    module: str
    class_name: str


_TABLE: dict[str, _Entry] = {
    "jacobian": _Entry("jacobian", "Jacobian"),
    "taylor": _Entry("gradients", "Taylor"),
    "taylor-group": _Entry("jacobian", "GroupTaylor"),
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


def make_criterion(name: str) -> Criterion:
    """Return a criterion by name.

    Raises:
        RequestError: There is none of that name.
    """
    if name not in _TABLE:
        raise RequestError(f"criterion '{name}' is not known: choose from {', '.join(CRITERIA)}")
    entry = _TABLE[name]
    module = importlib.import_module(f"obc_onnx.saliency.{entry.module}")
    made: Criterion = getattr(module, entry.class_name)()
    return made


__all__ = ["CRITERIA", "DATA_FREE", "Criterion", "Scene", "Scoring", "make_criterion"]
