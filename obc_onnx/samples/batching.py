"""Find which axes hold the samples: by what the model declares, by sizes, and by running it.

A batch axis is one along which samples do not touch each other: the outputs of two samples in one
run are those of each alone. That is tried in ONNX Runtime, guess by guess, the most likely first.
Time along the first axis of a recurrent network fails it, as its order matters. Where order does
not, samples share a statistic or were folded into another axis; then, and where two are refused and
one runs, a run takes one sample.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np

from obc_onnx.errors import ModelError, NoSizeError
from obc_onnx.graph.feeds import candidates, check_room, random_feed
from obc_onnx.graph.node import is_float
from obc_onnx.graph.operators import SHAPED_BY_INPUT
from obc_onnx.graph.session import Session
from obc_onnx.graph.shapes import infer_strictly
from obc_onnx.samples.batch_guesses import guesses
from obc_onnx.samples.batch_runs import SHAKE, Pair, Runs, changed_output, find_fault, is_ordered

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from numpy.typing import NDArray

    from obc_onnx.graph.batch_axes import Axes, BatchAxes
    from obc_onnx.graph.model import Graph
    from obc_onnx.samples.batch_runs import Fault

    Feed = dict[str, NDArray[Any]]
    Shape = tuple[int, ...]

_MOST_SIZES = 16
_LARGEST_BATCH = 1024


def random_pair(graph: Graph, guess: BatchAxes, shapes: Mapping[str, Shape], seed: int = 0) -> Pair:
    """Draw two samples, on which the model runs if there are such."""
    two, one = (guess.resized(shapes, count) for count in (2, 1))
    try:
        return pair_of(random_feed(graph, two, seed), guess)
    except ModelError:
        pass
    try:
        return pair_of(guess.chosen(random_feed(graph, one, seed), [0, 0]), guess)
    except ModelError:
        return pair_of(next(candidates(graph, two, seed)), guess)


def pair_of(together: Feed, guess: BatchAxes) -> Pair:
    """Make a pair of a feed of two samples."""
    first, second = (guess.chosen(together, [place]) for place in range(2))
    firsts, seconds = (guess.chosen(together, [place] * 2) for place in range(2))
    rng = np.random.default_rng(0)
    shaken = {
        name: np.asarray(array * (1 + SHAKE * rng.standard_normal(array.shape)), array.dtype)
        if is_float(array.dtype)
        else array
        for name, array in first.items()
    }
    swapped = guess.chosen(together, [1, 0])
    return Pair(together, (first, second), (firsts, seconds), swapped, shaken)


def find_batch(
    graph: Graph,
    tried: Sequence[BatchAxes],
    pair_for: Callable[[BatchAxes], Pair],
    named: Axes,
) -> BatchAxes:
    """Choose among guesses by running the model on two samples and on each alone.

    Args:
        graph: The model.
        tried: Guesses, at least one, in their order.
        pair_for: Gives two samples that lie as a guess says.
        named: Axes that the user names; they stand, and at worst a run takes one sample.
    Returns:
        The first guess that holds. Where none does, the first with one sample for each run; if
        samples along it change each other, a model without a batch axis.
    """
    first = replace(tried[0], proven=True)
    if first == replace(graph.batch_axes, proven=True) and first.size is not None:
        return first  # written into the inputs, where it is expected
    try:
        session = Session(graph, optimize=False)
    except ModelError:
        return first
    worst: BatchAxes | None = None
    for guess in tried:
        if guess.size is not None:
            return _written(session, guess, pair_for(guess))
        verdict = _judge(session, graph, guess, pair_for(guess), named)
        if verdict is not None and verdict.proven:
            return verdict
        worst = worst or verdict
    if worst is not None:
        return replace(worst, proven=True)
    return _written_size(session, graph, tried[0], pair_for)


def _written(session: Session, guess: BatchAxes, pair: Pair) -> BatchAxes:
    """Find the outputs of a model whose inputs say how many samples they hold."""
    size = guess.size or 1
    try:
        run = session.run(guess.chosen(pair.together, [place % 2 for place in range(size)]))
    except ModelError:
        return replace(guess, proven=True)
    return replace(guess, outputs=_of_fixed(run, guess, size), proven=True)


def _judge(
    session: Session, graph: Graph, guess: BatchAxes, pair: Pair, named: Axes
) -> BatchAxes | None:
    """Try one guess.

    Returns:
        Proven, where it holds or the model takes a single sample; not proven, what is left if no
        other guess holds; None where the model does not run.
    """
    try:
        alone = session.run(pair.alone[0])
    except ModelError:
        return None
    single = replace(guess, size=1, outputs=_of_fixed(alone, guess, 1))
    try:
        runs = Runs(session, pair)
    except ModelError as error:
        sentence = " ".join(str(error).split())
        note = f"a run takes one sample, since with two {sentence}"
        return replace(single, proven=True, note=note)
    if (name := changed_output(session, graph, pair, runs)) is not None:
        fault = find_fault(graph, pair)
        if fault.mixes and not is_ordered(session, graph, pair, runs, name):
            fault = replace(fault, mixes=False)
        return _touching(guess, single, name, fault, named)
    odd = next((n for n, axis in runs.joined.items() if axis and runs.is_folded(n)), None)
    if odd is not None or all(axis is None for axis in runs.joined.values()):
        name = odd or next(iter(runs.joined))
        note = f"a run takes one sample: with two, output '{name}' has none apart from the other"
        return replace(single, note=note)
    own = {name: None if runs.is_folded(name) else axis for name, axis in runs.joined.items()}
    return replace(guess, outputs=own, proven=True)


def _touching(
    guess: BatchAxes, single: BatchAxes, output: str, fault: Fault, named: Axes
) -> BatchAxes:
    """Say what is left where samples along the guessed axes change each other's outputs.

    A node that mixes what its inputs hold apart, by their order, says that the axis is another one
    than the batch, such as time.
    """
    name, axis = next((n, a) for n, a in guess.inputs.items() if a is not None)
    where = f" at {fault.node.label}" if fault.node is not None else ""
    if not fault.mixes or any(own is not None for own in named.values()):
        note = (
            f"a run takes one sample: with two on axis {axis} of input '{name}', output '{output}' "
            f"of one depends on the other{where}"
        )
        return replace(single, proven=not fault.mixes, note=note)
    single_runs = {name: None}
    note = (
        f"positions along axis {axis} of input '{name}' change each other{where}, so that it is no "
        f"batch: name the axis that is with `batch_axes`, or give `batch_axes={single_runs}` for "
        f"samples that each take a run of their own"
    )
    without: dict[str, int | None] = dict.fromkeys(guess.inputs)
    return replace(single, inputs=without, outputs=dict.fromkeys(guess.outputs), note=note)


def _written_size(
    session: Session,
    graph: Graph,
    guess: BatchAxes,
    pair_for: Callable[[BatchAxes], Pair],
) -> BatchAxes:
    """Look for a batch above 1 that the model takes, where it takes neither one sample nor any."""
    pair = pair_for(guess)
    for size in (2, *_spelled(graph)):
        try:
            session.run(guess.chosen(pair.together, [place % 2 for place in range(size)]))
        except ModelError:
            continue
        note = f"a run takes {size} samples, since that number is written inside the model"
        return replace(guess, size=size, proven=True, note=note)
    return replace(guess, proven=True)


def _spelled(graph: Graph) -> list[int]:
    """List the numbers that targets of a Reshape or an Expand spell out, the smallest first."""
    found = {
        int(number)
        for node in graph.nodes
        if node.op_type in SHAPED_BY_INPUT and node.inputs[1] in graph.initializers
        for number in graph.initializers[node.inputs[1]].reshape(-1)
    }
    return sorted(number for number in found if 1 < number <= _LARGEST_BATCH)[:_MOST_SIZES]


def _of_fixed(run: Mapping[str, Any], guess: BatchAxes, size: int) -> dict[str, int | None]:
    """Say where outputs hold the samples of a run: on the declared axis or the only one so long."""
    found: dict[str, int | None] = {}
    for name, value in run.items():
        shape = value.shape if isinstance(value, np.ndarray) else ()
        fits = [axis for axis, found_size in enumerate(shape) if found_size == size]
        declared = guess.outputs.get(name)
        found[name] = declared if declared in fits else fits[0] if len(fits) == 1 else None
    return found


def batch_of_shapes(graph: Graph, shapes: Mapping[str, Shape], named: Axes) -> BatchAxes:
    """Find the batch of a model by random inputs.

    Args:
        graph: The model.
        shapes: Of every input; the size on the batch axis has no meaning.
        named: Axes that the user names.
    """
    tried = list(guesses(graph.inputs, graph.batch_axes, named, shapes))
    if not _has_room(graph, shapes):
        note = (
            "which axes hold samples was not tried: a run would take more memory than there may be"
        )
        return replace(tried[0], proven=True, note=note)
    return find_batch(graph, tried, lambda guess: random_pair(graph, guess, shapes), named)


def _has_room(graph: Graph, shapes: Mapping[str, Shape]) -> bool:
    """Say whether a model can run, as far as the sizes of its values are known before it does."""
    try:
        known = infer_strictly(graph, shapes)
    except NoSizeError:
        raise
    except ModelError:
        known = {}  # ONNX Runtime may know better
    try:
        check_room(graph, known)
    except ModelError:
        return False
    return True
