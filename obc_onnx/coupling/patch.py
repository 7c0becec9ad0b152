"""A place whose numbers have to be written again, and with what."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from obc_onnx.axes.expressions import Dim, Joined, Product, Take, count
from obc_onnx.axes.sizes import Sized, evaluate, value_of

if TYPE_CHECKING:
    from collections.abc import Mapping

    import numpy as np
    from numpy.typing import NDArray

    from obc_onnx.axes.expressions import Expr
    from obc_onnx.ops.base.value import Wanted

    Keep = Mapping[Dim, NDArray[np.bool_]]

COPY, INFER = 0, -1
"""What a Reshape takes for a size that it copies, and for the one that is left over."""


@dataclass(frozen=True, eq=False)
class Patch:
    """A place whose numbers are written again where they are no longer right.

    Attributes:
        key: Of the node.
        place: An input slot, or the name of an attribute.
        numbers: What stands there before anything is removed; None where nothing does.
        wanted: What each of them has to be.
        written: What to write for it.
        because: As in `Spelling`.
        scalar: Whether an attribute is one number and not a list.
        drops: Attributes that must not stand beside what is written.
        route: Input slots (`Node.key`, slot) that the numbers pass on their way from this place to
            the node that spells them, nearest to that node first; empty where this is the node.
    """

    key: str
    place: int | str
    numbers: tuple[Any, ...] | None
    wanted: tuple[Wanted, ...]
    written: tuple[Wanted, ...]
    because: tuple[Expr, ...] = ()
    scalar: bool = False
    drops: tuple[str, ...] = ()
    route: tuple[tuple[str, int], ...] = ()

    def new_numbers(self, keep: Keep) -> list[int | float] | None:
        """Return what has to be written, None where everything is still right."""
        touched = any(count(axis, keep) < axis.size for axis in self.because)
        if self.numbers is None:
            return [_amount(wanted, keep) for wanted in self.written] if touched else None
        pairs = zip(self.numbers, self.wanted, strict=True)
        right = [_is_right(number, wanted, keep, touched=touched) for number, wanted in pairs]
        if all(right):
            return None
        return [
            number if stays and not isinstance(number, Sized) else _amount(written, keep)
            for number, written, stays in zip(self.numbers, self.written, right, strict=True)
        ]


def _amount(wanted: Wanted, keep: Keep) -> int | float:
    match wanted:
        case Dim() | Product() | Joined() | Take():
            return count(wanted, keep)
        case Sized():
            return evaluate(wanted, lambda axis: count(axis, keep))
        case None:
            return INFER
    return wanted


def _is_right(number: Any, wanted: Wanted, keep: Keep, *, touched: bool) -> bool:
    """Say whether a number is what it has to be; one that was spelled otherwise, untouched."""
    if wanted is None:
        return True
    before = value_of(number)
    after = (
        evaluate(number, lambda axis: count(axis, keep)) if isinstance(number, Sized) else number
    )
    meant, due = _amount(wanted, {}), _amount(wanted, keep)
    if before == meant:
        return bool(after == due)
    return bool(after == before and meant == due) and not touched
