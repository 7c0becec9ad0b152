"""Time a model at a few widths in an engine."""

from __future__ import annotations

import tempfile
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import onnx

from obc_onnx.engines.table import make_engine
from obc_onnx.latency.designs import keep_of
from obc_onnx.latency.profile import Profile, Timing, rounded
from obc_onnx.measuring.latency import race_closely
from obc_onnx.progress import track
from obc_onnx.surgery.cut import remove_units

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from obc_onnx.coupling.model import Coupling
    from obc_onnx.engines.engine import Engine, Feed, Layer, Loaded
    from obc_onnx.engines.options import EngineOptions
    from obc_onnx.graph.model import Graph
    from obc_onnx.measuring.latency import Race


def measure_profile(
    coupling: Coupling,
    options: EngineOptions,
    designs: Sequence[Mapping[str, int]],
    feed: Feed,
    *,
    round_to: int,
    seed: int,
) -> Profile:
    """Time designs of a model, each in turns with the whole model.

    Nothing is scored or repaired: how long a run takes does not depend on what weights are.

    Args:
        coupling: Of the model.
        options: The engine.
        designs: Widths of groups, for each design.
        feed: An array for each input.
        round_to: Of how many channels widths are a multiple, for the record.
        seed: Of the designs, for the record.
    Raises:
        EngineError: The engine is not there, or does not run the model.
    """
    engine = make_engine(options)
    with loaded(engine, coupling.graph, feed) as whole:
        whole.warm_up()
        timings = [
            _timing(engine, coupling, widths, feed, whole)
            for widths in track([{}, *designs], "timing widths")
        ]
        return Profile(
            model_sha256=coupling.graph.sha256,
            engine=options,
            version=whole.version,
            device=whole.device,
            shapes={name: list(array.shape) for name, array in feed.items()},
            round_to=round_to,
            seed=seed,
            timings=timings,
        )


def _timing(
    engine: Engine, coupling: Coupling, widths: Mapping[str, int], feed: Feed, whole: Loaded
) -> Timing:
    graph = remove_units(coupling, keep_of(coupling, widths))
    with loaded(engine, graph, feed) as narrow:
        narrow.warm_up()
        found = race_closely(whole, narrow)
        layers = narrow.layers()
    return timing_of(widths, found, layers or [])


def timing_of(widths: Mapping[str, int], found: Race, layers: Sequence[Layer]) -> Timing:
    """Note the time of a design.

    Args:
        widths: Of its groups.
        found: Its turns with the whole model.
        layers: What the engine tells of parts of a run.
    """
    return rounded(
        Timing(
            widths=dict(widths),
            ms=found.medians_ms[1],
            ratio=found.ratio,
            spread=found.spread,
            turns=len(found.after),
            layers=list(layers),
        )
    )


@contextmanager
def loaded(engine: Engine, graph: Graph, feed: Feed) -> Iterator[Loaded]:
    """Load a graph into an engine, from a file that is there as long as the block runs."""
    with tempfile.TemporaryDirectory() as folder:
        model, work = Path(folder) / "model.onnx", Path(folder) / "work"
        work.mkdir()
        write_named(graph, model)
        yield engine.load(model, feed, work)


def write_named(graph: Graph, path: Path) -> None:
    """Write a graph whose nodes are called like their first outputs, which are unique.

    What an engine tells of nodes can be told apart by that.
    """
    graph.save(path)
    message = onnx.load(path, load_external_data=False)
    for node in message.graph.node:
        node.name = next(output for output in node.output if output)
    onnx.save(message, path)
