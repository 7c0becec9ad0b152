"""Whether weights give a reason to look for units that do nothing: one look at each, and no run.

Most networks were trained densely, and have no such unit. What this overlooks stays, and costs what
it did.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from obc_onnx.stripping.units import any_of, comparable, rows

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from obc_onnx.coupling.model import Coupling, Group
    from obc_onnx.ops.base.context import Role


def may_strip(coupling: Coupling) -> bool:
    """Say whether some unit may do nothing.

    That takes a weight in which the unit is zero, or which does not read it, or weights that write
    it as they write another one.
    """
    return any(_may_lose(coupling, group) for group in coupling.groups if group.inexact is None)


def _may_lose(coupling: Coupling, group: Group) -> bool:
    known = [role for role in group.members if _array(coupling, role) is not None]
    if not any(role.kind == "reads" for role in group.members):
        return True
    if any(_has_zero(coupling, group, role) for role in known):
        return True
    writers = [role for role in group.members if role.kind == "writes"]
    return bool(writers) and all(_has_equal(coupling, group, role) for role in writers)


def _array(coupling: Coupling, role: Role) -> NDArray[Any] | None:
    return coupling.graph.initializers.get(role.node.inputs[role.slot])


def _has_zero(coupling: Coupling, group: Group, role: Role) -> bool:
    """Say whether a weight has a unit of which nothing is other than zero."""
    array = _array(coupling, role)
    axes = coupling.axes[role.node.inputs[role.slot]]
    return array is not None and not any_of(axes, group.dim, array != 0).all()


def _has_equal(coupling: Coupling, group: Group, role: Role) -> bool:
    """Say whether a weight has two equal units, to the bit."""
    array = _array(coupling, role)
    axes = coupling.axes[role.node.inputs[role.slot]]
    if array is None or not comparable(axes, group.dim):
        return False
    found = {row.tobytes() for row in np.ascontiguousarray(rows(axes, group.dim, array))}
    return len(found) < group.size
