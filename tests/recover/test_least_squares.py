"""Least squares against numpy in double precision: of many rows, of few, and of rows that repeat."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pytest
import torch

from obc_onnx.recover import least_squares as module
from obc_onnx.recover import residuals
from obc_onnx.recover.least_squares import Halves, Moments, solve

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Numbers = NDArray[np.float64]

INPUTS, OUTPUTS = 40, 6
RIDGES = (1e-4, 1e-3, 1e-2, 1e-1, 1.0)


def moments_of(x: Numbers, y: Numbers, n_chunks: int = 1) -> Moments:
    found = Moments(1, y.shape[1], x.shape[1])
    for part, wanted in zip(np.array_split(x, n_chunks), np.array_split(y, n_chunks), strict=True):
        found.add(torch.from_numpy(part)[None], torch.from_numpy(wanted)[None])
    return found


def drawn(n_rows: int, seed: int, *, biased: bool = True) -> tuple[Numbers, Numbers]:
    """Draw inputs of very different sizes that hang together, and outputs with noise."""
    rng, world = np.random.default_rng(seed), np.random.default_rng(7)
    mixed = world.standard_normal((INPUTS, INPUTS)) / np.arange(1, INPUTS + 1)[:, None]
    x = np.maximum(rng.standard_normal((n_rows, INPUTS)) @ mixed + 0.3, 0.0)
    x *= 10.0 ** world.integers(-1, 2, INPUTS)
    if biased:
        x[:, -1] = 1.0
    y = x @ world.standard_normal((INPUTS, OUTPUTS)) / 10
    return x, y + 0.3 * rng.standard_normal(y.shape)


def pulled(x: Numbers, y: Numbers, start: Numbers, ridge: float, *, biased: bool) -> Numbers:
    """Solve one pull as an equation in rows: those of the data, and one for each input."""
    size = np.square(x).sum(0)
    pull = np.full(INPUTS, ridge * size[: INPUTS - 1 if biased else INPUTS].mean())
    if biased:
        pull[-1] *= 1e-4
    rows = np.concatenate([x, np.diag(np.sqrt(pull))])
    wanted = np.concatenate([y, np.sqrt(pull)[:, None] * start.T])
    return np.asarray(np.linalg.lstsq(rows, wanted, rcond=None)[0].T)


def best_of(
    used: tuple[Numbers, Numbers], held: tuple[Numbers, Numbers], start: Numbers, *, biased: bool
) -> Numbers:
    """Choose a pull for each output on held rows, and solve on all rows with it."""
    everything = [np.concatenate(parts) for parts in zip(used, held, strict=True)]
    candidates, errors = [start], [np.square(held[1] - held[0] @ start.T).sum(0)]
    for ridge in RIDGES:
        tried = pulled(*used, start, ridge, biased=biased)
        errors.append(np.square(held[1] - held[0] @ tried.T).sum(0))
        candidates.append(pulled(everything[0], everything[1], start, ridge, biased=biased))
    choice = np.argmin(errors, 0)
    return np.stack([candidates[number][row] for row, number in enumerate(choice)])


@pytest.mark.parametrize("biased", [True, False], ids=["weight and bias", "weight"])
@pytest.mark.parametrize(
    ("n_used", "n_held"),
    [(4000, 1000), (16, 4), (16, 1000), (300, 10), (1, 1)],
    ids=["many", "few", "few to solve with", "few to judge with", "one"],
)
def test_the_best_pull_of_each_output_is_found(n_used: int, n_held: int, *, biased: bool) -> None:
    used, held = (drawn(n, i, biased=biased) for i, n in enumerate((n_used, n_held)))
    start = np.random.default_rng(3).standard_normal((OUTPUTS, INPUTS)) / 10
    expected = best_of(used, held, start, biased=biased)
    left, right = moments_of(*used, n_chunks=min(3, n_used)), moments_of(*held)
    found = solve(left, right, torch.from_numpy(start)[None], biased=biased)
    x = np.concatenate([used[0], held[0]])
    wanted, given = x @ expected.T, x @ found.matrix[0].numpy().T
    assert np.abs(given - wanted).max() < 1e-4 * np.abs(wanted).max()
    for matrix, error in ((start, found.before), (found.matrix[0].numpy(), found.after)):
        true = np.square(held[1] - held[0] @ matrix.T).sum()
        assert abs(error - true) < 1e-3 * true + 1e-6 * found.before


def test_enough_rows_give_the_least_squares() -> None:
    x, y = drawn(5000, 0)
    expected = np.linalg.lstsq(x, y, rcond=None)[0]
    start = torch.zeros(1, OUTPUTS, INPUTS, dtype=torch.float64)
    found = solve(
        moments_of(x[:4000], y[:4000]), moments_of(x[4000:], y[4000:]), start, biased=True
    )
    best, own = (
        np.square(y - x @ matrix).sum() for matrix in (expected, found.matrix[0].numpy().T)
    )
    assert own < 1.01 * best


def test_an_output_that_would_be_worse_keeps_its_weights() -> None:
    """Rows to solve for and rows that were held out say the opposite of output 1."""
    rng = np.random.default_rng(0)
    x, held = rng.standard_normal((2, 500, 4))
    true = rng.standard_normal((4, 2))
    y, wanted = x @ true, held @ true
    y[:, 1] *= -1
    start = torch.from_numpy(true.T[None] * 1.01)
    found = solve(moments_of(x, y), moments_of(held, wanted), start, biased=False).matrix
    assert torch.equal(found[0, 1], start[0, 1])
    np.testing.assert_allclose(found[0, 0], true[:, 0], atol=1e-3)


def test_an_error_that_is_small_enough_is_left_alone() -> None:
    x, y = drawn(500, 0)
    start = torch.zeros(1, OUTPUTS, INPUTS, dtype=torch.float64)
    before = float(np.square(y).sum())
    found = solve(moments_of(x, y), moments_of(x, y), start, biased=True, least=1.01 * before)
    assert found.matrix is start
    assert found.before == found.after == pytest.approx(before)
    found = solve(moments_of(x, y), moments_of(x, y), start, biased=True, least=0.99 * before)
    assert found.after < 0.9 * before


@pytest.mark.parametrize("n_rows", [3, 10, 15, 16, 17, 300])
def test_rows_that_are_held_and_their_sums_are_worth_the_same(n_rows: int) -> None:
    """With 33 inputs, 16 rows are held."""
    x, y = drawn(n_rows, 0)
    x = x[:, -33:]
    matrix, change = np.random.default_rng(1).standard_normal((2, 1, OUTPUTS, 33)) / 50
    moments, summed = (moments_of(x, y, n_chunks=3) for _ in range(2))
    assert (moments._sums is None) == (n_rows <= 16)
    summed.sums()
    start = torch.from_numpy(matrix)
    lefts = [moments.left_by(start), summed.left_by(start)]
    for left in [*lefts, *(one.joined(other) for one in lefts for other in lefts)]:
        times = 1 if left in lefts else 2
        for error, added in (
            (left.total, 0.0),
            (left.error(torch.from_numpy(change)), change[0]),
        ):
            true = times * np.square(y - x @ (matrix[0] + added).T).sum(0)
            np.testing.assert_allclose(error[0], true, rtol=1e-5)


def repeated(n_rows: int) -> tuple[Numbers, Numbers]:
    """Draw rows of which each input stands twice, and which have zeros, beside very large ones."""
    x, y = drawn(n_rows, 0)
    x[:, 1::2] = x[:, ::2]
    x[:, :4] = 0.0
    x[:, 6] *= 1e4
    return x, y


@pytest.mark.parametrize("n_rows", [15, 2000])
def test_inputs_that_repeat_others_are_shared_among_both(n_rows: int) -> None:
    """The moments are singular: the pull alone says which of all matrices it is."""
    x, y = repeated(n_rows)
    assert np.linalg.matrix_rank(x) < INPUTS - 15
    start = np.random.default_rng(3).standard_normal((OUTPUTS, INPUTS)) / 10
    used = moments_of(x.astype(np.float32), y.astype(np.float32))
    found = solve(used, used, torch.from_numpy(start)[None], biased=False)
    matrix = found.matrix[0].numpy()
    np.testing.assert_array_equal(matrix[:, :4], start[:, :4])
    change = matrix - start
    rounding = 1e-3 * np.abs(change).max()
    np.testing.assert_allclose(change[:, 8::2], change[:, 9::2], rtol=0, atol=rounding)
    errors = [np.square(y - x @ m.T).sum() for m in (start, matrix)]
    best = np.square(y - x @ np.linalg.lstsq(x, y, rcond=None)[0]).sum()
    assert errors[1] - best < 0.01 * (errors[0] - best)


def test_where_single_precision_finds_no_factor_double_does(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Two inputs that are equal but for a millionth need a pull of less than that."""
    monkeypatch.setattr(module, "_RIDGES", (1e-11,))
    x, y = repeated(2000)
    x[:, :4], x[:, 6] = x[:, 10:14], x[:, 7]
    start = torch.zeros(1, OUTPUTS, INPUTS, dtype=torch.float64)
    moments = moments_of(x, y)
    system = moments.left_by(start).system(torch.float32, biased=False)
    assert not system.change(1e-11, torch.arange(OUTPUTS)).isfinite().all()
    found = solve(moments, moments, start, biased=False)
    best = np.square(y - x @ np.linalg.lstsq(x, y, rcond=None)[0]).sum()
    assert float(np.square(y - x @ found.matrix[0].numpy().T).sum()) == pytest.approx(
        best, rel=1e-3
    )


def test_what_cannot_be_solved_stays() -> None:
    """Moments that no rows have, whose matrix is not positive."""
    moments = Moments(1, 1, 2)
    moments.add_sums(*(torch.tensor(v) for v in ([[[1.0, 2], [2, -9]]], [[[1.0], [1]]], [[4.0]])))
    start = torch.zeros(1, 1, 2, dtype=torch.float64)
    found = solve(moments, moments, start, biased=False)
    assert torch.equal(found.matrix, start)
    assert found.after == found.before == 4.0


def test_blocks_are_solved_apart() -> None:
    rows = [drawn(n, seed) for n, seed in ((600, 0), (600, 1))]
    rows[1][1][:] *= 3
    x, y = (torch.from_numpy(np.stack(parts)) for parts in zip(*rows, strict=True))
    together = Moments(2, OUTPUTS, INPUTS)
    together.add(x, y)
    start = torch.zeros(2, OUTPUTS, INPUTS, dtype=torch.float64)
    found = solve(together, together, start, biased=True).matrix
    for block, own in enumerate(rows):
        moments = moments_of(*own)
        alone = solve(moments, moments, start[:1], biased=True).matrix
        np.testing.assert_allclose(found[block], alone[0], rtol=1e-4, atol=1e-6)


def test_wide_moments_are_made_in_strips() -> None:
    x = torch.randn(2, 30, 2 * residuals._STRIP + 5, dtype=torch.float64)
    assert torch.equal(residuals.squared(x), residuals.squared(x).mT)
    torch.testing.assert_close(residuals.squared(x), x.mT @ x)


@pytest.mark.parametrize("judges", [(False, True, False), (False, False)])
def test_chunks_that_judge_are_not_solved_with(judges: tuple[bool, ...]) -> None:
    halves = Halves(judges, (1, 1, 1))
    for i, judges_it in enumerate(judges):
        assert halves.of(i) is (halves.judge if judges_it else halves.used)
    assert (halves.judge is halves.used) == (not any(judges))
