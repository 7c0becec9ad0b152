"""Numbers that follow the sizes of axes, as shape arithmetic computes them.

A graph that reads `Shape`, picks, multiplies and divides makes numbers such as `batch * 12`. A
`Sized` number is such an expression. Whether it still is the size of some other axis once units are
removed is a question about polynomials in the sizes of dims, and is answered exactly.

This module knows nothing of ONNX.
"""

from __future__ import annotations

import operator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from obc_onnx.axes.expressions import Dim, Joined, Product, Take, leaves, product

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from obc_onnx.axes.expressions import Expr

    Atom = Dim | Take
    Monomial = frozenset[tuple[Atom, int]]
    Polynomial = dict[Monomial, int]


def divide(a: int, b: int) -> int:
    """Divide whole numbers as ONNX does, towards zero; by zero gives zero, which nothing uses."""
    return 0 if b == 0 else (abs(a) // abs(b)) * (1 if (a < 0) == (b < 0) else -1)


def value_of(number: Any) -> Any:
    """Return what a number is before anything is removed, whether it follows sizes or not."""
    return number.value if isinstance(number, Sized) else number


_FUNCTIONS = {"+": operator.add, "-": operator.sub, "*": operator.mul, "//": divide}


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

    @property
    def value(self) -> int:  # type: ignore[override]
        """Result before anything is removed."""
        return evaluate(self, lambda axis: axis.size)


Whole = int | Sized
"""A number that is written down, or one that follows sizes."""


def evaluate(number: Whole, size_of: Callable[[Expr], int]) -> int:
    """Compute a number.

    Args:
        number: What to compute.
        size_of: Gives the size of an axis.
    """
    match number:
        case AxisSize(axis=axis):
            return size_of(axis)
        case Arithmetic(symbol=symbol, left=left, right=right):
            return int(_FUNCTIONS[symbol](evaluate(left, size_of), evaluate(right, size_of)))
    return int(number)  # type: ignore[arg-type]


def with_axes(number: Whole, replace: Callable[[Expr], Expr]) -> Whole:
    """Rewrite a number over other axes, as over resolved ones."""
    match number:
        case AxisSize(axis=axis):
            return AxisSize(replace(axis))
        case Arithmetic(symbol=symbol, left=left, right=right):
            return Arithmetic(symbol, with_axes(left, replace), with_axes(right, replace))
    return number


def axes_of(number: object) -> Iterator[Expr]:
    """Yield every axis whose size a number depends on."""
    match number:
        case AxisSize(axis=axis):
            yield axis
        case Arithmetic(left=left, right=right):
            yield from axes_of(left)
            yield from axes_of(right)


def axis_of(number: Whole, make_dim: Callable[[int], Dim]) -> Expr | None:
    """Build an axis whose size a number is, whatever is removed; None where none is known.

    Args:
        number: A size, or a product of sizes and whole numbers.
        make_dim: Makes a dim for a factor that is written down.
    """
    match number:
        case AxisSize(axis=axis):
            return axis
        case Arithmetic(symbol="*", left=left, right=right):
            factors = [axis_of(factor, make_dim) for factor in (left, right)]
            known = [factor for factor in factors if factor is not None]
            return product(known) if len(known) == len(factors) else None
        case Arithmetic():
            return None
    return make_dim(int(number)) if int(number) >= 0 else None  # type: ignore[arg-type]


def polynomial(number: Whole, count: Callable[[Expr], Polynomial]) -> Polynomial | None:
    """Write a number as a polynomial in sizes.

    Args:
        number: The number.
        count: Gives the polynomial of an axis's size, as from `size_polynomial`.
    Returns:
        Coefficients by monomial; None where a division leaves a remainder.
    """
    match number:
        case AxisSize(axis=axis):
            return count(axis)
        case Arithmetic(symbol=symbol, left=left, right=right):
            a, b = polynomial(left, count), polynomial(right, count)
            if a is None or b is None:
                return None
            if symbol == "*":
                return _times(a, b)
            if symbol == "//":
                return _quotient(a, b)
            return _plus(a, b if symbol == "+" else _times(b, constant(-1)))
    return constant(int(number))  # type: ignore[arg-type]


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
            total = {}
            for part in parts:
                total = _plus(total, size_polynomial(part, varies))
            return total
        case Take():
            fixed = not any(varies(dim) for dim in leaves(expr))
            return constant(expr.size) if fixed else {frozenset({(expr, 1)}): 1}


def constant(value: int) -> Polynomial:
    """Write a number without unknowns."""
    return {frozenset(): value} if value else {}


def _plus(a: Polynomial, b: Polynomial) -> Polynomial:
    total = dict(a)
    for monomial, coefficient in b.items():
        total[monomial] = total.get(monomial, 0) + coefficient
    return {monomial: coefficient for monomial, coefficient in total.items() if coefficient}


def _times(a: Polynomial, b: Polynomial) -> Polynomial:
    total: Polynomial = {}
    for left, x in a.items():
        for right, y in b.items():
            total = _plus(total, {_merged(left, right, 1): x * y})
    return total


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
