"""Resize of spatial axes."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from obc_onnx.errors import ModelError, UnsupportedOperatorError
from obc_onnx.ops.rule import Call, FreeOfMacs, Rule
from obc_onnx.ops.value import Value

if TYPE_CHECKING:
    from collections.abc import Mapping

    from torch import Tensor

    from obc_onnx.axes import Expr
    from obc_onnx.node import Node
    from obc_onnx.ops.context import CoupleContext, ForwardContext

_SIZES = 3
_SCALES_SLOT = {"Upsample": 1, "Resize": 2}
_MODES = {"nearest": "nearest", "linear": "linear", "cubic": "cubic"}


class Resize(FreeOfMacs):
    """Interpolate; an axis whose size does not change keeps its positions."""

    op_types = ("Resize", "Upsample")
    held = (1, 2)

    def couple(self, context: CoupleContext) -> list[Value]:
        """Pass axes of equal size through, freeze those that are resampled."""
        x = context.value(0)
        shape = context.shape()
        resampled = [i for i, size in enumerate(shape) if size != x.shape[i]]
        context.freeze([x.axes[i] for i in resampled], "a resampled axis")
        if context.node.text("coordinate_transformation_mode", "") == "tf_crop_and_resize":
            context.freeze(x.axes, "a cropped axis")
        axes: list[Expr] = [
            context.fixed(size, "a resampled axis") if i in resampled else x.axes[i]
            for i, size in enumerate(shape)
        ]
        sizes = context.optional(_SIZES)
        if sizes is not None and sizes.axes[0].size:
            where = _sized_axes(context.node, len(axes))
            if sizes.numbers is None:
                context.freeze(axes, "a computed size")
            else:
                context.spell(_SIZES, *(axes[i] for i in where))
        return [Value(tuple(axes))]

    def forward(self, context: ForwardContext) -> Call:
        """Run torch's interpolate where its coordinates are ONNX's.

        Raises:
            UnsupportedOperatorError: The node asks for coordinates that torch does not have.
        """
        node = context.node
        mode = node.text("mode", "nearest")
        transform = node.text("coordinate_transformation_mode", "half_pixel")
        if node.op_type == "Upsample" or node.opset == 10:  # noqa: PLR2004 - the only such opset
            transform = "asymmetric"
        nearest = mode == "nearest" and (
            transform == "asymmetric" and self._nearest_mode(node) == "floor"
        )
        smooth = mode in {"linear", "cubic"} and transform in {
            "half_pixel", "pytorch_half_pixel", "align_corners",
        }  # fmt: skip
        cubic_fits = mode != "cubic" or node.number("cubic_coeff_a", -0.75) == -0.75  # noqa: PLR2004
        plain = not (
            node.integer("antialias", 0)
            or node.integer("exclude_outside", 0)
            or node.text("keep_aspect_ratio_policy", "stretch") != "stretch"
        )
        if not ((nearest or (smooth and cubic_fits)) and plain):
            raise UnsupportedOperatorError(
                f"{node.label}: the twin cannot resize with mode '{mode}' and coordinates "
                f"'{transform}'; the model can be pruned with --criterion l2 and without training"
            )
        constants = {
            "mode": mode,
            "align_corners": transform == "align_corners",
            "scales": self._scales(context),
            "sizes": context.integers(_SIZES),
            "axes": node.integers("axes"),
        }
        computed = node.has_input(_SIZES) and constants["sizes"] is None
        return Call(resize, constants, (0, _SIZES) if computed else (0,))

    @staticmethod
    def _nearest_mode(node: Node) -> str:
        fixed = node.op_type == "Upsample" or node.opset == 10  # noqa: PLR2004
        return "floor" if fixed else node.text("nearest_mode", "round_prefer_floor")

    @staticmethod
    def _scales(context: ForwardContext) -> tuple[float, ...] | None:
        own = context.node.attributes.get("scales")
        if own is not None:
            return tuple(float(scale) for scale in own)
        slot = 1 if context.node.opset == 10 else _SCALES_SLOT[context.node.op_type]  # noqa: PLR2004
        array = context.arrays[slot] if slot < len(context.arrays) else None
        if array is None or array.size == 0:
            return None
        return tuple(float(scale) for scale in np.asarray(array, np.float64))


def _sized_axes(node: Node, rank: int) -> tuple[int, ...]:
    return tuple(axis % rank for axis in node.integers("axes") or range(rank))


def resize(
    x: Tensor,
    _roi: None = None,
    _scales: None = None,
    computed: Tensor | None = None,
    *,
    mode: str,
    align_corners: bool,
    scales: tuple[float, ...] | None,
    sizes: tuple[int, ...] | None,
    axes: tuple[int, ...] | None,
) -> Tensor:
    """Compute Resize over the axes behind batch and channels.

    Raises:
        ModelError: The batch or the channels would be resampled.
    """
    from torch.nn import functional

    spatial = x.ndim - 2
    modes: dict[tuple[str, int], str] = {
        ("linear", 1): "linear", ("linear", 2): "bilinear", ("linear", 3): "trilinear",
        ("cubic", 2): "bicubic",
    }  # fmt: skip
    options: dict[str, Any] = {"mode": modes.get((mode, spatial), "nearest")}
    if mode != "nearest":
        options["align_corners"] = align_corners
    where = [axis % x.ndim for axis in axes or range(x.ndim)]
    wanted = computed.tolist() if computed is not None else sizes
    if wanted is not None:
        target = dict(zip(where, wanted, strict=True))
        _refuse_channels({axis: size / x.shape[axis] for axis, size in target.items()})
        size = [int(target.get(i, x.shape[i])) for i in range(2, x.ndim)]
        return functional.interpolate(x, size=size, **options)
    factor = dict(zip(where, scales or (), strict=True))
    _refuse_channels(factor)
    options["scale_factor"] = [factor.get(i, 1.0) for i in range(2, x.ndim)]
    return functional.interpolate(x, **options, recompute_scale_factor=False)


def _refuse_channels(factors: Mapping[int, float]) -> None:
    if factors.get(0, 1.0) != 1.0 or factors.get(1, 1.0) != 1.0:
        raise ModelError("the twin cannot resample the batch or the channels")


RULES: tuple[Rule, ...] = (Resize(),)
