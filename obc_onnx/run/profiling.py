"""Profile a model: time it at a few widths, and say how well that tells the times of others."""

from __future__ import annotations

from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from obc_onnx.coupling.analysis import Clock, Model, analyse, load_model, model_name, told
from obc_onnx.engines.options import EngineOptions
from obc_onnx.errors import RequestError
from obc_onnx.files import replacing_folder
from obc_onnx.graph.feeds import random_feed
from obc_onnx.latency import kit
from obc_onnx.latency.designs import draw_designs
from obc_onnx.latency.measure import measure_profile
from obc_onnx.latency.predictor import fit
from obc_onnx.ops.catalogue import DEFAULT_RULES
from obc_onnx.planning.budget import DESIGNS
from obc_onnx.planning.rooms import rooms_of
from obc_onnx.planning.scope import BLOCKS, Scope
from obc_onnx.report.profiling import Profiling

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from obc_onnx.coupling.model import Coupling
    from obc_onnx.engines.engine import Feed
    from obc_onnx.graph.batch_axes import Axes
    from obc_onnx.latency.profile import Profile
    from obc_onnx.ops.base.rule import RuleSet

    Shape = tuple[int, ...]


def profile(
    model: Model,
    *,
    engine: EngineOptions | str = "onnxruntime",
    batch: int = 1,
    designs: int = DESIGNS,
    round_to: int = BLOCKS[0],
    input_shape: Mapping[str, Shape] | None = None,
    batch_axes: Axes | None = None,
    seed: int = 0,
    rules: RuleSet = DEFAULT_RULES,
) -> Profiling:
    """Time a model at a few widths of all its groups, for targets of latency.

    Args:
        model: A file, a loaded model, or a graph; it is left as it is.
        engine: What times it, and how; a name is that engine as it is.
        batch: How many samples a run has; a model with a static batch takes no other.
        designs: How many networks are timed besides the model.
        round_to: Of how many channels their widths are a multiple.
        input_shape: Sizes of dynamic inputs, by input name.
        batch_axes: The axis of each input that holds samples, or None; found where it is not named.
        seed: Of the designs and of what the model is fed.
        rules: What is known of operators.
    Raises:
        ObcError: The request cannot be met; the message says why.
    """
    with _opened(model, input_shape, batch_axes, rules) as (coupling, inputs):
        found = profile_coupling(
            coupling,
            EngineOptions(engine) if isinstance(engine, str) else engine,
            _resized(coupling, inputs, batch),
            designs=designs,
            round_to=round_to,
            seed=seed,
        )
        return Profiling(model_name(model), found, fit(coupling, found).errors)


def profile_coupling(
    coupling: Coupling,
    engine: EngineOptions,
    inputs: Mapping[str, Shape],
    *,
    designs: int = DESIGNS,
    round_to: int = BLOCKS[0],
    seed: int = 0,
) -> Profile:
    """Time designs of what a coupling is of.

    Args:
        coupling: Of the model.
        engine: What times it.
        inputs: The shapes that it is timed with.
        designs: How many networks are timed besides the model.
        round_to: Of how many channels their widths are a multiple.
        seed: Of the designs and of what the model is fed.
    """
    drawn = _drawn(coupling, inputs, designs, round_to, seed)
    return measure_profile(coupling, engine, *drawn, round_to=round_to, seed=seed)


def write_kit(
    model: Model,
    folder: str | Path,
    *,
    batch: int = 1,
    designs: int = DESIGNS,
    round_to: int = BLOCKS[0],
    input_shape: Mapping[str, Shape] | None = None,
    batch_axes: Axes | None = None,
    seed: int = 0,
    rules: RuleSet = DEFAULT_RULES,
) -> list[Path]:
    """Write what `profile` would time, with scripts that time it on another machine.

    Args:
        model: A file, a loaded model, or a graph; it is left as it is.
        folder: Where to write: one that is not there yet, or is empty.
        batch: How many samples a run has; a model with a static batch takes no other.
        designs: How many networks are timed besides the model.
        round_to: Of how many channels their widths are a multiple.
        input_shape: Sizes of dynamic inputs, by input name.
        batch_axes: The axis of each input that holds samples, or None; found where it is not named.
        seed: Of the designs and of what the model is fed.
        rules: What is known of operators.
    Returns:
        The scripts.
    Raises:
        ObcError: The request cannot be met; the message says why.
    """
    folder = Path(folder)
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise RequestError(f"'{folder}' is not empty: name another folder for the kit")
    with _opened(model, input_shape, batch_axes, rules) as (coupling, inputs):
        drawn = _drawn(coupling, _resized(coupling, inputs, batch), designs, round_to, seed)
        with replacing_folder(folder) as temporary:
            kit.write_kit(coupling, *drawn, temporary, round_to=round_to, seed=seed)
    return [folder / script for script in kit.SCRIPTS.values()]


def read_kit(
    model: Model,
    folder: str | Path,
    *,
    engine: str = "onnxruntime",
    input_shape: Mapping[str, Shape] | None = None,
    batch_axes: Axes | None = None,
    rules: RuleSet = DEFAULT_RULES,
) -> Profiling:
    """Read what a script of a kit wrote on another machine.

    Args:
        model: That which the kit was written of.
        folder: The kit, as it came back.
        engine: Whose script ran: "onnxruntime" or "trtexec".
        input_shape: Sizes of dynamic inputs, as the kit was written with.
        batch_axes: The axis of each input that holds samples, as the kit was written with.
        rules: What is known of operators.
    Raises:
        ObcError: Times are missing, half written, of another kit or of another model.
    """
    found = kit.read_kit(Path(folder), engine)
    with _opened(model, input_shape, batch_axes, rules) as (coupling, _):
        return Profiling(model_name(model), found, fit(coupling, found).errors)


@contextmanager
def _opened(
    model: Model, input_shape: Mapping[str, Shape] | None, batch_axes: Axes | None, rules: RuleSet
) -> Iterator[tuple[Coupling, Mapping[str, Shape]]]:
    """Load and analyse a model; errors in the block name what was found out about it."""
    graph = load_model(model)
    coupling, inputs = analyse(graph, input_shape, rules, Clock(), batch_axes)
    with told(coupling.graph, inputs):
        yield coupling, inputs


def _drawn(
    coupling: Coupling, inputs: Mapping[str, Shape], designs: int, round_to: int, seed: int
) -> tuple[list[dict[str, int]], Feed]:
    """Draw designs among the widths that a later plan may choose, and what they are fed."""
    scope = Scope(round_to=round_to, allow_inexact=True)
    allowed = {room.group.name: room.widths for room in rooms_of(coupling, scope)}
    feed = random_feed(coupling.graph, inputs, seed)
    return draw_designs(coupling, allowed, designs, seed), feed


def _resized(coupling: Coupling, inputs: Mapping[str, Shape], batch: int) -> Mapping[str, Shape]:
    static = coupling.graph.batch
    if static is not None and batch not in (1, static):
        raise RequestError(
            f"the model takes {static} samples in a run, and no {batch}: leave `batch` out"
        )
    return coupling.graph.batch_axes.resized(inputs, static or batch)
