"""Linear maps along one axis of a weight, from its full size to its kept size.

An axis expression decides the shape of the map: a dim that may be recombined gets a matrix, any
other shrinking dim is selected from, a product maps its factors and a concatenation its parts.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, cast

import torch
from torch import Tensor, nn
from torch.nn import functional

from obc_onnx.axes.expressions import Dim, Joined, Product, leaves, mask

if TYPE_CHECKING:
    from collections.abc import Mapping
    from collections.abc import Set as AbstractSet

    from obc_onnx.axes.expressions import Expr
    from obc_onnx.coupling.model import Keep


class AxisMap(nn.Module):
    """Maps axis `axis` of a tensor; the base class leaves it as it is."""

    def forward(self, x: Tensor, axis: int) -> Tensor:  # noqa: ARG002
        """Return `x`."""
        return x


class Select(AxisMap):
    """Keeps chosen positions."""

    def __init__(self, positions: Tensor) -> None:
        super().__init__()
        self.register_buffer("positions", positions)

    def forward(self, x: Tensor, axis: int) -> Tensor:
        """Take the kept positions."""
        return x.index_select(axis, cast("Tensor", self.positions))


class Mix(AxisMap):
    """Recombines positions by a trained matrix, shape [kept, full].

    A compressor is this matrix, a decompressor its transpose. Where it starts as the selection of
    the kept positions, the function starts as that of the sliced network.
    """

    def __init__(self, selection: Tensor) -> None:
        super().__init__()
        self.matrix = nn.Parameter(selection)

    def forward(self, x: Tensor, axis: int) -> Tensor:
        """Multiply the axis by the matrix.

        Weights of convolutions lie in memory with axis 1 last where training wants speed
        (channels last); then neither way copies anything, and the result lies so too.
        """
        if axis:
            return functional.linear(x.movedim(axis, -1), self.matrix).movedim(-1, axis)
        if x.ndim == 1:
            return self.matrix @ x
        rest = x.movedim(1, -1)
        mixed = self.matrix @ rest.flatten(1)
        return mixed.reshape(-1, *rest.shape[1:]).movedim(-1, 1)


class ProductMap(AxisMap):
    """Maps every factor of a row-major axis."""

    def __init__(self, maps: list[AxisMap], sizes: tuple[int, ...]) -> None:
        super().__init__()
        self.maps = nn.ModuleList(maps)
        self.sizes = sizes

    def forward(self, x: Tensor, axis: int) -> Tensor:
        """Unfold the axis into its factors, map each, and fold it again."""
        x = x.reshape(*x.shape[:axis], *self.sizes, *x.shape[axis + 1 :])
        for i, factor in enumerate(self.maps):
            x = factor(x, axis + i)
        return x.flatten(axis, axis + len(self.sizes) - 1)


class ConcatMap(AxisMap):
    """Maps every part of an axis."""

    def __init__(self, maps: list[AxisMap], sizes: tuple[int, ...]) -> None:
        super().__init__()
        self.maps = nn.ModuleList(maps)
        self.sizes = sizes

    def forward(self, x: Tensor, axis: int) -> Tensor:
        """Cut the axis into its parts, map each, and join them again."""
        start, mapped = 0, []
        for part, size in zip(self.maps, self.sizes, strict=True):
            mapped.append(part(x.narrow(axis, start, size), axis))
            start += size
        return torch.cat(mapped, axis)


def make_map(
    expr: Expr,
    keep: Keep,
    mixable: AbstractSet[Dim],
    dtype: torch.dtype,
    shared: dict[Dim, Mix] | None = None,
    starts: Mapping[Dim, Tensor] | None = None,
) -> AxisMap:
    """Build the map of an axis.

    Args:
        expr: The resolved expression of the axis.
        keep: The units that stay.
        mixable: Dims that may be recombined; the others are selected from.
        dtype: Of the weight.
        shared: Matrices to use again, by dim; a new one is added. None gives every place of a dim
            its own.
        starts: Matrices to start from, by dim, shape [kept, full]; selections otherwise.
    """
    if not any(dim in keep for dim in leaves(expr)):
        return AxisMap()
    match expr:
        case Dim() if expr in mixable:
            if shared is not None and expr in shared:
                return shared[expr]
            start = (starts or {}).get(expr)
            if start is None:
                start = torch.eye(expr.size)[torch.from_numpy(keep[expr])]
            made = Mix(start.to(dtype))
            if shared is not None:
                shared[expr] = made
            return made
        case Product(factors=factors):
            maps = [make_map(factor, keep, mixable, dtype, shared, starts) for factor in factors]
            return ProductMap(maps, tuple(factor.size for factor in factors))
        case Joined(parts=parts):
            maps = [make_map(part, keep, mixable, dtype, shared, starts) for part in parts]
            return ConcatMap(maps, tuple(part.size for part in parts))
        case _:
            return Select(torch.from_numpy(mask(expr, keep)).nonzero().reshape(-1))
