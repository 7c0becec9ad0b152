"""The command line: parse, call, print. Everything heavy is imported inside the commands."""

from __future__ import annotations

import functools
import json
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any, ParamSpec

import click

from obc_onnx import defaults
from obc_onnx.errors import ObcError, RequestError
from obc_onnx.version import __version__

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from obc_onnx.data import DataOptions
    from obc_onnx.planning import Budget
    from obc_onnx.training import TrainingOptions

P = ParamSpec("P")

_INTERRUPTED = 130
FILE = click.Path(path_type=Path)


def parse_shapes(
    _context: click.Context, _parameter: click.Parameter, values: tuple[str, ...]
) -> dict[str, tuple[int, ...]]:
    """Read `NAME:1x3x224x224` options; the last colon counts, since names may hold some."""
    shapes = {}
    for value in values:
        name, _, sizes = value.rpartition(":")
        if not name or not all(size.isdecimal() for size in sizes.split("x")):
            raise click.BadParameter(f"'{value}' is not of the form NAME:1x3x224x224")
        shapes[name] = tuple(int(size) for size in sizes.split("x"))
    return shapes


def parse_numbers(
    _context: click.Context, _parameter: click.Parameter, value: str
) -> tuple[float, ...]:
    """Read `0.485,0.456,0.406`."""
    try:
        return tuple(float(number) for number in value.split(","))
    except ValueError:
        raise click.BadParameter(f"'{value}' is not a list of numbers") from None


class Failure(click.ClickException):
    """A message for the user, and the exit code that goes with it."""

    def __init__(self, message: str, exit_code: int) -> None:
        super().__init__(message)
        self.exit_code = exit_code  # type: ignore[misc]


def reports_errors(command: Callable[P, None]) -> Callable[P, None]:
    """Turn what users can act on into a one-line message and exit code; let bugs traceback."""

    @functools.wraps(command)
    def wrapper(*args: P.args, **kwargs: P.kwargs) -> None:
        try:
            command(*args, **kwargs)
        except ObcError as error:
            sentence = " ".join(str(error).split())  # messages of onnx and ONNX Runtime have lines
            raise Failure(sentence, error.exit_code) from error
        except MemoryError as error:
            raise Failure(f"not enough memory: {error or 'an allocation failed'}", 1) from error
        except KeyboardInterrupt as error:
            raise Failure("interrupted; no file was written", _INTERRUPTED) from error

    return wrapper


def combined(*decorators: Callable[[Any], Any]) -> Callable[[Any], Any]:
    """Make one decorator of several, so that commands share groups of options."""

    def decorate(command: Any) -> Any:
        for decorator in reversed(decorators):
            command = decorator(command)
        return command

    return decorate


input_shape_option = click.option(
    "--input-shape",
    metavar="NAME:1x3x224x224",
    multiple=True,
    callback=parse_shapes,
    help="Size of a dynamic input; may be given several times.",
)
json_option = click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
seed_option = click.option(
    "--seed", type=click.IntRange(0, 2**63 - 1), default=0, show_default=True
)


@click.group()
@click.version_option(__version__, prog_name="obc-onnx")
def cli() -> None:
    """Make a deployed ONNX model smaller and faster, and prove the result."""


@cli.command()
@click.argument("model", type=FILE)
@click.option(
    "--explain",
    metavar="NAME",
    help="Follow a tensor, or one axis of it as NAME:1, to all that it is tied to.",
)
@input_shape_option
@json_option
@reports_errors
def inspect(
    model: Path,
    *,
    explain: str | None,
    input_shape: dict[str, tuple[int, ...]],
    as_json: bool,
) -> None:
    """Show what can be pruned in MODEL, and what cannot and why."""
    from obc_onnx.pipeline import inspect as inspect_model
    from obc_onnx.report.terminal import explanation_text, inspection_text

    inspection = inspect_model(model, input_shape=input_shape, explained=explain)
    text = inspection_text if explain is None else explanation_text
    click.echo(inspection.to_json() if as_json else text(inspection))


data_options = combined(
    click.option(
        "--data", type=FILE, help="An .npz with one array per input, or a folder of images."
    ),
    click.option(
        "--eval-data", type=FILE, help="Samples to measure on, instead of a held-out share."
    ),
    click.option(
        "--holdout",
        type=click.FloatRange(0, 1, min_open=True, max_open=True),
        default=defaults.HOLDOUT,
        show_default=True,
        help="Share of the data, from its end, that is only measured on.",
    ),
    click.option(
        "--image-mean", metavar="A,B,C", callback=parse_numbers, default="0", show_default=True
    ),
    click.option(
        "--image-std", metavar="A,B,C", callback=parse_numbers, default="1", show_default=True
    ),
    click.option("--image-size", type=(int, int), help="Height and width, where they are open."),
)
plan_options = combined(
    click.option(
        "--target-macs",
        type=float,
        default=defaults.TARGET_MACS,
        show_default=True,
        help="Share of the MACs that may be left.",
    ),
    click.option("--criterion", help="How to score units: jacobian (default with data) or l2."),
    click.option(
        "--ranking",
        type=click.Choice(["global", "per-mac"]),
        default="global",
        show_default=True,
        help="How to compare units of different groups.",
    ),
    click.option(
        "--steps",
        type=click.IntRange(1),
        default=defaults.STEPS,
        show_default=True,
        help="Cut in this many steps, and score again before each.",
    ),
    click.option(
        "--round-to",
        type=click.IntRange(1),
        default=defaults.ROUND_TO,
        show_default=True,
        help="Make widths that shrink a multiple of this, as runtimes like 8 or 16.",
    ),
    click.option(
        "--score-samples",
        type=click.IntRange(1),
        default=defaults.SCORED_SAMPLES,
        show_default=True,
        help="Samples that the criterion looks at.",
    ),
    click.option(
        "--allow-inexact",
        is_flag=True,
        help="Prune groups under a layer norm or a mean too, which a mask cannot verify.",
    ),
    click.option(
        "--exclude", multiple=True, help="Pattern of node or initializer names to leave whole."
    ),
)
training_options = combined(
    click.option(
        "--epochs",
        type=click.IntRange(0),
        default=0,
        show_default=True,
        help="Passes of fine-tuning; 0 only cuts.",
    ),
    click.option(
        "--recover",
        type=click.Choice(["auto", "none"]),
        default="auto",
        show_default=True,
        help="Repair without training, where there is data.",
    ),
    click.option(
        "--batch-size", type=click.IntRange(2), default=defaults.BATCH_SIZE, show_default=True
    ),
    click.option(
        "--lr",
        type=click.FloatRange(0, min_open=True),
        default=defaults.LEARNING_RATE,
        show_default=True,
    ),
    click.option("--device", default="cpu", show_default=True, help="Where torch runs."),
)


@cli.command()
@click.argument("model", type=FILE)
@click.option("-o", "--output", type=FILE, required=True, help="Where to write the result.")
@click.option("--plan-out", type=FILE, help="Where to write the plan, as JSON.")
@click.option("--latency", is_flag=True, help="Time both models in ONNX Runtime.")
@data_options
@plan_options
@training_options
@input_shape_option
@seed_option
@json_option
@reports_errors
def compress(
    model: Path,
    output: Path,
    plan_out: Path | None,
    *,
    latency: bool,
    seed: int,
    input_shape: dict[str, tuple[int, ...]],
    as_json: bool,
    **options: Any,
) -> None:
    """Write a smaller MODEL with the same inputs and outputs to OUTPUT.

    Without --epochs it scores, cuts and verifies. Without --data units are scored by their weights.
    """
    from obc_onnx.pipeline import compress as compress_model
    from obc_onnx.report.terminal import report_text

    data = [path for path in (options["data"], options["eval_data"]) if path is not None]
    _check_target(output, data)  # the model itself may be replaced by what becomes of it
    if plan_out is not None:
        _check_target(plan_out, [output, model, *data])
    result = compress_model(
        model,
        data=_data_of(options),
        budget=_budget_of(options),
        criterion=options["criterion"],
        training=_training_of(options),
        recover=options["recover"] == "auto",
        device=options["device"],
        input_shape=input_shape,
        seed=seed,
        latency=latency,
    )
    result.save(output, plan_out)
    click.echo(result.report.to_json() if as_json else report_text(result.report))


@cli.command()
@click.argument("original", type=FILE)
@click.argument("compressed", type=FILE)
@click.option("--plan", type=FILE, required=True, help="The plan that `compress` wrote.")
@input_shape_option
@seed_option
@json_option
@reports_errors
def verify(
    original: Path,
    compressed: Path,
    plan: Path,
    *,
    input_shape: dict[str, tuple[int, ...]],
    seed: int,
    as_json: bool,
) -> None:
    """Check that COMPRESSED is ORIGINAL without the units that the plan removes."""
    from obc_onnx.pipeline import verify as verify_model
    from obc_onnx.plan import PruningPlan
    from obc_onnx.report.terminal import checks_text
    from obc_onnx.verify import require

    checks = verify_model(
        original, compressed, PruningPlan.load(plan), input_shape=input_shape, seed=seed
    )
    if as_json:
        click.echo(json.dumps({"verification": [asdict(check) for check in checks]}, indent=1))
    else:
        click.echo(checks_text(checks))
    require(checks)


def _check_target(path: Path, others: Sequence[Path]) -> None:
    """Check before long work that a file can be written, and that it is none of the others."""
    from obc_onnx.files import check_writable

    check_writable(path)
    for other in others:
        if path.resolve() == other.resolve():
            raise RequestError(f"'{path}' is named twice: one file would overwrite the other")


def _data_of(options: dict[str, Any]) -> DataOptions:
    from obc_onnx.data import DataOptions
    from obc_onnx.images import ImageOptions

    return DataOptions(
        source=options["data"],
        holdout=options["holdout"],
        evaluation=options["eval_data"],
        images=ImageOptions(options["image_mean"], options["image_std"], options["image_size"]),
        scored=options["score_samples"],
    )


def _budget_of(options: dict[str, Any]) -> Budget:
    from obc_onnx.planning import Budget

    return Budget(
        target_macs=options["target_macs"],
        ranking=options["ranking"],
        steps=options["steps"],
        round_to=options["round_to"],
        exclude=tuple(options["exclude"]),
        allow_inexact=options["allow_inexact"],
    )


def _training_of(options: dict[str, Any]) -> TrainingOptions | int:
    if options["epochs"] == 0:
        return 0
    from obc_onnx.training import TrainingOptions

    return TrainingOptions(
        epochs=options["epochs"],
        batch_size=options["batch_size"],
        lr=options["lr"],
    )
