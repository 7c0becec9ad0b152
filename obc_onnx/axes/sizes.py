"""Numbers that follow the sizes of axes, as shape arithmetic computes them.

A graph that reads `Shape`, picks, multiplies and divides makes numbers such as `batch * 12`. A
`Sized` number is such an expression. Whether it still is the size of some other axis once units are
removed is a question about polynomials in the sizes of dims, and is answered exactly.

This module knows nothing of ONNX.
"""

from __future__ import annotations

import operator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, TypeVar

from obc_onnx.axes.expressions import Dim, Joined, Product, Take, leaves, product

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from obc_onnx.axes.expressions import Expr

    Atom = Dim | Take
    Monomial = frozenset[tuple[Atom, int]]
    Polynomial = dict[Monomial, int]


T = TypeVar("T")


def divide(a: int, b: int) -> int:
    """Divide whole numbers as ONNX does, towards zero; by zero gives zero, which nothing uses."""
    return 0 if b == 0 else (abs(a) // abs(b)) * (1 if (a < 0) == (b < 0) else -1)


def value_of(number: Any) -> Any:
    """Return what a number is before anything is removed, whether it follows sizes or not."""
    return number.value if isinstance(number, Sized) else number


_FUNCTIONS = {"+": operator.add, "-": operator.sub, "*": operator.mul, "//": divide}
_WORD = 2**63
"""Numbers of graphs are 64 bits wide: what goes beyond starts again from the other end."""
_MOST_TERMS = 256
"""A polynomial of more terms counts as unknown: products of sums would grow without end."""


def _compute(symbol: str, left: int, right: int) -> int:
    exact = int(_FUNCTIONS[symbol](int(left), int(right)))
    return (exact + _WORD) % (2 * _WORD) - _WORD


class Sized:
    """A whole number that depends on sizes; arithmetic with it gives such a number again.

    Attributes:
        value: What it is before anything is removed.
    """

    value: int

    def __add__(self, other: Whole) -> Sized:
        return Arithmetic("+", self, other)

    def __radd__(self, other: Whole) -> Sized:
        return Arithmetic("+", other, self)

    def __sub__(self, other: Whole) -> Sized:
        return Arithmetic("-", self, other)

    def __rsub__(self, other: Whole) -> Sized:
        return Arithmetic("-", other, self)

    def __mul__(self, other: Whole) -> Sized:
        return Arithmetic("*", self, other)

    def __rmul__(self, other: Whole) -> Sized:
        return Arithmetic("*", other, self)

    def __floordiv__(self, other: Whole) -> Sized:
        return Arithmetic("//", self, other)

    def __rfloordiv__(self, other: Whole) -> Sized:
        return Arithmetic("//", other, self)


@dataclass(frozen=True, slots=True, eq=False)
class AxisSize(Sized):
    """The size of an axis."""

    axis: Expr

    @property
    def value(self) -> int:  # type: ignore[override]
        """Size before anything is removed."""
        return self.axis.size


@dataclass(frozen=True, slots=True, eq=False)
class Arithmetic(Sized):
    """What an operator makes of two numbers; the division is that of whole numbers."""

    symbol: str
    left: Whole
    right: Whole
    value: int = field(init=False)
    """Result before anything is removed."""
    axes: tuple[Expr, ...] = field(init=False, repr=False)
    """Those whose sizes it depends on."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "axes", _axes_of_both(self.left, self.right))
        result = _compute(self.symbol, value_of(self.left), value_of(self.right))
        object.__setattr__(self, "value", result)


Whole = int | Sized
"""A number that is written down, or one that follows sizes."""


def _folded(
    number: Whole, leaf: Callable[[AxisSize | int], T], join: Callable[[str, T, T], T]
) -> T:
    """Work a number out from its parts, each once, however deep they lie and often they are used.

    Args:
        number: The number.
        leaf: Gives what the size of an axis, or a number that is written down, is worth.
        join: Gives what an operation makes of two of those.
    """
    known: dict[int, T] = {}
    waiting: list[Whole] = [number]
    while waiting:
        top = waiting[-1]
        if isinstance(top, Arithmetic):
            parts = [part for part in (top.left, top.right) if id(part) not in known]
            if parts:
                waiting += parts
                continue
            known[id(top)] = join(top.symbol, known[id(top.left)], known[id(top.right)])
        else:
            known[id(top)] = leaf(top)  # type: ignore[arg-type]
        waiting.pop()
    return known[id(number)]


def evaluate(number: Whole, size_of: Callable[[Expr], int]) -> int:
    """Compute a number.

    Args:
        number: What to compute.
        size_of: Gives the size of an axis.
    """
    return _folded(
        number,
        lambda part: size_of(part.axis) if isinstance(part, AxisSize) else int(part),
        _compute,
    )


def with_axes(number: Whole, replace: Callable[[Expr], Expr]) -> Whole:
    """Rewrite a number over other axes, as over resolved ones."""
    return _folded(
        number,
        lambda part: AxisSize(replace(part.axis)) if isinstance(part, AxisSize) else part,
        Arithmetic,
    )


def axes_of(number: object) -> tuple[Expr, ...]:
    """List every axis whose size a number depends on."""
    match number:
        case AxisSize(axis=axis):
            return (axis,)
        case Arithmetic(axes=axes):
            return axes
    return ()


def _axes_of_both(left: object, right: object) -> tuple[Expr, ...]:
    """Put axes together; a number that is added to again and again shares them with what it was."""
    own, more = axes_of(left), axes_of(right)
    known = set(map(id, own)) if more else set[int]()
    fresh = tuple(axis for axis in more if id(axis) not in known)
    return own + fresh if own and fresh else own or fresh


def axis_of(number: Whole, make_dim: Callable[[int], Dim]) -> Expr | None:
    """Build an axis whose size a number is, whatever is removed; None where none is known.

    Args:
        number: A size, or a product of sizes and whole numbers.
        make_dim: Makes a dim for a factor that is written down.
    """

    def leaf(part: AxisSize | int) -> Expr | None:
        if isinstance(part, AxisSize):
            return part.axis
        return make_dim(int(part)) if int(part) >= 0 else None

    def join(symbol: str, left: Expr | None, right: Expr | None) -> Expr | None:
        known = symbol == "*" and left is not None and right is not None
        found = product([left, right]) if known else None  # type: ignore[list-item]
        return None if found is None or found.size >= _WORD else found

    return _folded(number, leaf, join)


def polynomial(number: Whole, count: Callable[[Expr], Polynomial]) -> Polynomial | None:
    """Write a number as a polynomial in sizes.

    Args:
        number: The number.
        count: Gives the polynomial of an axis's size, as from `size_polynomial`.
    Returns:
        Coefficients by monomial; None where a division leaves a remainder, or where there are too
        many of them, or too large ones.
    """

    def join(symbol: str, a: Polynomial | None, b: Polynomial | None) -> Polynomial | None:
        if a is None or b is None:
            return None
        if symbol == "*":
            found: Polynomial | None = _times(a, b)
        elif symbol == "//":
            found = _quotient(a, b)
        else:
            found = _plus(a, b if symbol == "+" else _times(b, constant(-1)))
        if found is None or len(found) > _MOST_TERMS:
            return None
        return None if any(abs(factor) >= _WORD for factor in found.values()) else found

    return _folded(
        number,
        lambda part: count(part.axis) if isinstance(part, AxisSize) else constant(int(part)),
        join,
    )


def size_polynomial(expr: Expr, varies: Callable[[Dim], bool]) -> Polynomial:
    """Write the size of a resolved axis as a polynomial in the sizes of dims.

    Args:
        expr: A resolved axis expression.
        varies: Whether a dim's size may change; the others count as the numbers they are.
    """
    match expr:
        case Dim():
            return {frozenset({(expr, 1)}): 1} if varies(expr) else constant(expr.size)
        case Product(factors=factors):
            total = constant(1)
            for factor in factors:
                total = _times(total, size_polynomial(factor, varies))
            return total
        case Joined(parts=parts):
            return _sum(size_polynomial(part, varies) for part in parts)
        case Take():
            fixed = not any(varies(dim) for dim in leaves(expr))
            return constant(expr.size) if fixed else {frozenset({(expr, 1)}): 1}


def constant(value: int) -> Polynomial:
    """Write a number without unknowns."""
    return {frozenset(): value} if value else {}


def _sum(polynomials: Iterable[Polynomial]) -> Polynomial:
    total: Polynomial = {}
    for added in polynomials:
        for monomial, coefficient in added.items():
            total[monomial] = total.get(monomial, 0) + coefficient
    return {monomial: coefficient for monomial, coefficient in total.items() if coefficient}


def _plus(a: Polynomial, b: Polynomial) -> Polynomial:
    return _sum((a, b))


def _times(a: Polynomial, b: Polynomial) -> Polynomial:
    return _sum({_merged(left, right, 1): x * y} for left, x in a.items() for right, y in b.items())


def _quotient(a: Polynomial, b: Polynomial) -> Polynomial | None:
    """Divide by a single term; None where that leaves a remainder or another divisor is asked for.

    Two equal polynomials divide into 1.
    """
    if a == b and a:
        return constant(1)
    if len(b) != 1:
        return None
    ((divisor, by),) = b.items()
    total: Polynomial = {}
    for monomial, coefficient in a.items():
        powers = dict(monomial)
        if coefficient % by or any(powers.get(atom, 0) < power for atom, power in divisor):
            return None
        total[_merged(monomial, divisor, -1)] = coefficient // by
    return total


def _merged(left: Monomial, right: Monomial, sign: int) -> Monomial:
    powers = dict(left)
    for atom, power in right:
        powers[atom] = powers.get(atom, 0) + sign * power
    return frozenset((atom, power) for atom, power in powers.items() if power)
