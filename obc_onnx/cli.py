"""The command line: parse, call, print. Everything heavy is imported inside the commands."""

from __future__ import annotations

import functools
import json
from contextlib import contextmanager
from dataclasses import asdict
from typing import TYPE_CHECKING, Any, ParamSpec

import click

from obc_onnx.defaults import FINETUNE_EPOCHS
from obc_onnx.errors import ObcError, RequestError
from obc_onnx.options import (
    FILE,
    budget_of,
    data_of,
    data_options,
    device_option,
    input_shape_option,
    json_option,
    plan_options,
    recover_option,
    seed_option,
)
from obc_onnx.score_options import given_of, scoring_of, scoring_options
from obc_onnx.train_options import training_of, training_options
from obc_onnx.version import __version__

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from pathlib import Path

    from obc_onnx.scoring import Scores

P = ParamSpec("P")

_INTERRUPTED = 130


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
            raise Failure("interrupted; no result was written", _INTERRUPTED) from error

    return wrapper


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
@click.option("--scores", type=FILE, help="Show the units with the least and the most saliency.")
@input_shape_option
@json_option
@reports_errors
def inspect(
    model: Path,
    *,
    explain: str | None,
    scores: Path | None,
    input_shape: dict[str, tuple[int, ...]],
    as_json: bool,
) -> None:
    """Show what can be pruned in MODEL, and what cannot and why."""
    from obc_onnx.pipeline import inspect as inspect_model
    from obc_onnx.report.terminal import explanation_text, inspection_text

    if scores is not None and explain is not None:
        raise RequestError("--explain shows no scores: give one of the two")
    inspection = inspect_model(
        model, input_shape=input_shape, explained=explain, scores=_load_scores(scores)
    )
    text = inspection_text if explain is None else explanation_text
    click.echo(inspection.to_json() if as_json else text(inspection))


@cli.command()
@click.argument("model", type=FILE)
@click.option("-o", "--output", type=FILE, required=True, help="Where to write the result.")
@click.option("--plan-out", type=FILE, help="Where to write the plan, as JSON.")
@click.option("--latency", is_flag=True, help="Time both models in ONNX Runtime.")
@click.option("--scores", type=FILE, help="What `score` wrote, in place of a criterion.")
@data_options
@scoring_options(alone=False)
@plan_options
@recover_option
@training_options(epochs=0)
@device_option
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
    scores: Path | None,
    seed: int,
    input_shape: dict[str, tuple[int, ...]],
    as_json: bool,
    **options: Any,
) -> None:
    """Write a smaller MODEL with the same inputs and outputs to OUTPUT.

    Without --epochs it scores, cuts and verifies. Without --data units are scored by their weights.
    """
    if scores is not None and (options["criterion"] or options["preset"] or given_of(options)):
        raise RequestError("--scores are there already: leave out what says how to score")
    read = [*_files_read(options), *([] if scores is None else [scores])]
    _check_targets(model, output, plan_out, read)
    _compress(
        (model, output, plan_out),
        options,
        as_json=as_json,
        budget=budget_of(options),
        criterion=options["criterion"],
        scoring=scoring_of(options),
        scores=_load_scores(scores),
        training=training_of(options),
        input_shape=input_shape,
        seed=seed,
        latency=latency,
    )


@cli.command()
@click.argument("model", type=FILE)
@click.option("--plan", type=FILE, required=True, help="What to cut, as `compress` wrote it.")
@click.option("-o", "--output", type=FILE, required=True, help="Where to write the result.")
@click.option("--plan-out", type=FILE, help="Where to write the plan with the trained digest.")
@data_options
@recover_option
@training_options(epochs=FINETUNE_EPOCHS)
@device_option
@input_shape_option
@seed_option
@json_option
@reports_errors
def finetune(
    model: Path,
    plan: Path,
    output: Path,
    plan_out: Path | None,
    *,
    seed: int,
    input_shape: dict[str, tuple[int, ...]],
    as_json: bool,
    **options: Any,
) -> None:
    """Cut MODEL by a plan that is there already, and fine-tune what is left.

    Under torchrun several processes train together, and the first one writes.
    """
    from obc_onnx.plan import PruningPlan

    _check_target(output, [plan])  # the new plan may replace the old one
    _check_targets(model, output, plan_out, _files_read(options))
    _compress(
        (model, output, plan_out),
        options,
        as_json=as_json,
        plan=PruningPlan.load(plan),
        training=training_of(options),
        input_shape=input_shape,
        seed=seed,
    )


@cli.command()
@click.argument("model", type=FILE)
@click.option("-o", "--output", type=FILE, required=True, help="Where to write scores, as .npz.")
@data_options
@scoring_options(alone=True)
@device_option
@input_shape_option
@seed_option
@reports_errors
def score(
    model: Path,
    output: Path,
    *,
    seed: int,
    input_shape: dict[str, tuple[int, ...]],
    **options: Any,
) -> None:
    """Score the units of MODEL, for `compress --scores` and `inspect --scores`.

    Under torchrun each process takes a share of the samples, and the first one writes.
    """
    from obc_onnx.pipeline import score as score_model

    _check_target(output, [model, *_files_read(options)])
    with _writer(options["device"]) as (device, writes):
        scores = score_model(
            model,
            data=data_of(options),
            criterion=options["criterion"],
            scoring=scoring_of(options),
            input_shape=input_shape,
            seed=seed,
            device=device,
        )
        if writes:
            scores.save(output)


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


@cli.command()
@click.argument("model", type=FILE)
@click.option("-o", "--output", type=FILE, help="Where to write the program, as .pt2.")
@click.option("--print-code", is_flag=True, help="Print the module's Python code.")
@input_shape_option
@reports_errors
def twin(
    model: Path,
    output: Path | None,
    *,
    print_code: bool,
    input_shape: dict[str, tuple[int, ...]],
) -> None:
    """Turn MODEL into a PyTorch module: print its code, or write it as an exported program."""
    if output is None and not print_code:
        raise RequestError("nothing to do: give --output, --print-code, or both")
    if output is not None:
        _check_target(output, [model])
    from obc_onnx.program import TwinProgram

    program = TwinProgram.of(model, input_shape)
    if output is not None:
        program.save(output)
    if print_code:
        click.echo(program.twin.code)


def _load_scores(path: Path | None) -> Scores | None:
    from obc_onnx.scoring import Scores

    return None if path is None else Scores.load(path)


def _compress(
    files: tuple[Path, Path, Path | None], options: dict[str, Any], *, as_json: bool, **asked: Any
) -> None:
    """Compress a model, write it and the plan, and print the report: the end of two commands.

    Args:
        files: The model, where it goes, and where its plan goes.
        options: Those that both commands take.
        as_json: Whether one object is printed.
        asked: What else `pipeline.compress` is asked for.
    """
    from obc_onnx.pipeline import compress as compress_model
    from obc_onnx.report.terminal import report_text

    model, output, plan_out = files
    with _writer(options["device"]) as (device, writes):
        result = compress_model(
            model,
            data=data_of(options),
            run_dir=options["run_dir"],
            resume=options["resume"],
            recover=options["recover"] == "auto",
            device=device,
            **asked,
        )
        if writes:
            result.save(output, plan_out)
            click.echo(result.report.to_json() if as_json else report_text(result.report))


@contextmanager
def _writer(device: str) -> Iterator[tuple[str, bool]]:
    """Join the other processes, where there are any.

    Yields:
        The device of this one, and whether it is the one that writes and prints.
    """
    from obc_onnx.processes import joined, local_device, rank

    with joined(device):
        yield local_device(device), rank() == 0


def _files_read(options: dict[str, Any]) -> list[Path]:
    """List the files that a command reads besides the model."""
    from pathlib import Path

    code = [options.get("score_loss"), options.get("transform")]
    code += [name for name, _ in options.get("loss") or () if ".py:" in name]
    files = [Path(source.rpartition(":")[0]) for source in code if source is not None]
    named = [options["data"], options["eval_data"], options.get("config")]
    return [*files, *(path for path in named if path is not None)]


def _check_targets(model: Path, output: Path, plan_out: Path | None, read: Sequence[Path]) -> None:
    """Check where a result and its plan go; the model may be replaced by what becomes of it."""
    _check_target(output, read)
    if plan_out is not None:
        _check_target(plan_out, [output, model, *read])


def _check_target(path: Path, others: Sequence[Path]) -> None:
    """Check before long work that a file can be written, and that it is none of the others."""
    from obc_onnx.files import check_writable

    check_writable(path)
    for other in others:
        if path.resolve() == other.resolve():
            raise RequestError(f"'{path}' is named twice: one file would overwrite the other")
