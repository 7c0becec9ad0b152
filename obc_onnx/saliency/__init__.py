"""Criteria: functions that give every unit of every group a saliency.

`CRITERIA` names them all; `obc_onnx.saliency.jacobian` loads torch, so it is imported on demand.
"""

from __future__ import annotations

from obc_onnx.errors import RequestError
from obc_onnx.saliency.criterion import Criterion, Scene

CRITERIA = ("jacobian", "l2")
DATA_FREE = "l2"


def make_criterion(name: str) -> Criterion:
    """Return a criterion by name.

    Raises:
        RequestError: There is none of that name.
    """
    if name == "l2":
        from obc_onnx.saliency.magnitude import Magnitude

        return Magnitude()
    if name == "jacobian":
        from obc_onnx.saliency.jacobian import Jacobian

        return Jacobian()
    raise RequestError(f"criterion '{name}' is not known: choose from {', '.join(CRITERIA)}")


__all__ = ["CRITERIA", "DATA_FREE", "Criterion", "Scene", "make_criterion"]
