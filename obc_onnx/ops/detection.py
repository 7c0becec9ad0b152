"""NonMaxSuppression: which boxes are left depends on all coordinates and scores."""

from __future__ import annotations

from typing import TYPE_CHECKING

from obc_onnx.ops.base.rule import Call
from obc_onnx.ops.frozen import Frozen

if TYPE_CHECKING:
    from torch import Tensor

    from obc_onnx.ops.base.context import ForwardContext
    from obc_onnx.ops.base.rule import Rule


class Boxes(Frozen):
    """Inputs are boxes [batch, n, 4], scores [batch, classes, n], and up to three limits."""

    op_types = ("NonMaxSuppression",)
    why = "a choice of boxes"

    def forward(self, context: ForwardContext) -> Call:
        """Choose boxes one by one."""
        by_center = bool(context.node.integer("center_point_box", 0))
        return Call(choose_boxes, {"by_center": by_center}, context.given(0, 1, 2, 3, 4))


def choose_boxes(
    boxes: Tensor,
    scores: Tensor,
    most: Tensor | None = None,
    greatest_overlap: Tensor | None = None,
    least_score: Tensor | None = None,
    *,
    by_center: bool,
) -> Tensor:
    """Compute NonMaxSuppression. Source: the ONNX operator page of NonMaxSuppression.

    Args:
        boxes: Corners (y1, x1, y2, x2), or (x, y, width, height); shape [batch, n, 4].
        scores: Shape [batch, classes, n].
        most: Boxes that are left of each class at most; none where it is left out.
        greatest_overlap: Intersection over union above which the lower score goes; 0 by default.
        least_score: What does not score more is left out.
        by_center: Whether boxes are given by their center.
    Returns:
        Rows of (batch, class, box), best first within each class; shape [n chosen, 3], int64.
    """
    import torch

    limit = 0 if most is None else int(most)
    overlap = 0.0 if greatest_overlap is None else float(greatest_overlap)
    corners = _corners(boxes, by_center=by_center)
    chosen = []
    for sample, of_classes in enumerate(scores):
        for label, own in enumerate(of_classes):
            order = own.argsort(descending=True, stable=True)
            if least_score is not None:
                order = order[own[order] > least_score]
            left = _suppress(corners[sample], order.tolist(), overlap, limit)
            chosen += [(sample, label, box) for box in left]
    return torch.tensor(chosen, dtype=torch.int64, device=boxes.device).reshape(-1, 3)


def _corners(boxes: Tensor, *, by_center: bool) -> Tensor:
    """Return the lower and the upper corner of each box, shape [batch, n, 2, 2]."""
    import torch

    first, second = boxes.reshape(*boxes.shape[:-1], 2, 2).unbind(-2)
    if by_center:
        first, second = first - second / 2, first + second / 2
    return torch.stack([torch.minimum(first, second), torch.maximum(first, second)], -2)


def _suppress(corners: Tensor, order: list[int], overlap: float, limit: int) -> list[int]:
    """Take boxes in order, but none that overlaps with one that was taken."""
    taken: list[int] = []
    for box in order:
        if len(taken) == limit:
            break
        if not taken or bool((_overlaps(corners[box], corners[taken]) <= overlap).all()):
            taken.append(box)
    return taken


def _overlaps(box: Tensor, others: Tensor) -> Tensor:
    """Return the intersection over union of a box and each of several; 0 where both are empty."""
    import torch

    lower = torch.maximum(box[0], others[:, 0])
    upper = torch.minimum(box[1], others[:, 1])
    common = (upper - lower).clamp(min=0).prod(-1)
    areas = (others[:, 1] - others[:, 0]).prod(-1)
    union = (box[1] - box[0]).prod() + areas - common
    return torch.where(union > 0, common / union, torch.zeros_like(common))


RULES: tuple[Rule, ...] = (Boxes(),)
