"""What commands share: errors and their exit codes, files that are read and written, results."""

from __future__ import annotations

import functools
import shlex
from contextlib import contextmanager
from traceback import print_exception
from typing import TYPE_CHECKING, Any, NamedTuple, ParamSpec, cast

import click

from obc_onnx.cli.options import data_of
from obc_onnx.cli.pages import write_page
from obc_onnx.cli.plan_options import budget_of
from obc_onnx.cli.printing import copied_to, printing_options, tell_written
from obc_onnx.cli.score_options import scoring_of
from obc_onnx.cli.wording import in_options
from obc_onnx.errors import ObcError, RequestError, UserCodeError, VerificationError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence
    from pathlib import Path

    from obc_onnx.saliency.scores import Scores

P = ParamSpec("P")

_INTERRUPTED, _TERMINATED = 130, 143
"""Exit codes, as shells have them: 128 and the number of the signal."""
_TARGETS = ("output", "kit", "plan_out", "plot", "report_out", "page")
"""Parameters of commands that say where a result goes."""
_FOR_PROGRAMS = ("as_json", "print_code")
"""Parameters with which a command prints what programs read, and nothing else."""
_LONGEST = 320
"""Characters of a message."""
_GAP, _REST = " [...] ", " (-v shows all)"


class Failure(click.ClickException):
    """A message for the user, and the exit code that goes with it."""

    def __init__(self, message: str, exit_code: int) -> None:
        super().__init__(message)
        self.exit_code = exit_code  # type: ignore[misc]


def reports_errors(command: Callable[P, str | None]) -> Callable[P, None]:
    """Turn what users can act on into a one-line message and exit code; let bugs traceback.

    A command returns what may come next, where it has written something: its last line says both.
    It also takes the options that say how much is printed, see `printing`.
    """

    @functools.wraps(command)
    def wrapper(*args: P.args, **kwargs: P.kwargs) -> None:
        from obc_onnx.files import recording
        from obc_onnx.interruption import Terminated, terminable
        from obc_onnx.progress import silenced

        longest = None if kwargs.pop("verbose") else _LONGEST
        quiet, log = bool(kwargs.pop("quiet")), cast("Path | None", kwargs.pop("log_file"))
        with recording() as written, silenced(silent=quiet):
            try:
                with copied_to(log, kwargs), terminable():
                    then = command(*args, **kwargs)
                    if not (quiet or any(kwargs.get(name) for name in _FOR_PROGRAMS)):
                        tell_written(_there(kwargs, written), then)
            except ObcError as error:
                text = in_options(str(error))
                if longest is None and isinstance(error, UserCodeError):
                    print_exception(error.__cause__)
                most = None if isinstance(error, VerificationError) else longest
                raise Failure(in_a_line(text, most), error.exit_code) from error
            except MemoryError as error:
                said = in_a_line(str(error), longest) or "an allocation failed"
                raise Failure(f"not enough memory: {said}", 1) from error
            except Terminated as error:
                raise Failure(_ended("terminated", kwargs, written), _TERMINATED) from error
            except KeyboardInterrupt as error:
                raise Failure(_ended("interrupted", kwargs, written), _INTERRUPTED) from error

    return printing_options(wrapper)


def is_verbose() -> bool:
    """Say whether the command that runs was given --verbose."""
    return bool(click.get_current_context().params["verbose"])


def in_a_line(text: str, most: int | None) -> str:
    """Return a message in one line, without its middle where it is long.

    Messages of onnx and ONNX Runtime have lines, and hold whole lists of names or sizes. What they
    begin with says where, and what they end with often says what.

    Args:
        text: The message.
        most: Of how many characters; None where it lists what failed.
    """
    line = " ".join(text.split())
    if most is None or len(line) <= most:
        return line
    half = (most - len(_GAP) - len(_REST)) // 2
    return f"{line[:half]}{_GAP}{line[-half:]}{_REST}"


def _ended(how: str, options: Mapping[str, Any], written: Sequence[Path]) -> str:
    """Say what a command that a signal ended has left, of what it was to write."""
    there = [f"'{path}'" for path in _there(options, written)]
    return f"{how}; {' and '.join(there) or 'no result'} {_were(there)} written"


def _there(options: Mapping[str, Any], written: Sequence[Path]) -> list[str]:
    """List what was to be written and is, as it was named."""
    from obc_onnx.files import destination

    targets = [options[name] for name in _TARGETS if options.get(name) is not None]
    holders = {holder for path in written for holder in (path, *path.parents)}
    return [str(path) for path in targets if destination(path) in holders]


def _were(things: Sequence[str]) -> str:
    return "were" if len(things) > 1 else "was"


def load_scores(path: Path | None) -> Scores | None:
    """Read what `score` wrote, where that was given."""
    from obc_onnx.saliency.scores import Scores

    return None if path is None else Scores.load(path)


def decided_by(options: dict[str, Any]) -> dict[str, Any]:
    """Gather what says how units are scored and how many stay, as arguments."""
    return {
        "budget": budget_of(options),
        "criterion": options["criterion"],
        "scoring": scoring_of(options),
        "scores": load_scores(options["scores"]),
    }


def worked_with(options: dict[str, Any]) -> dict[str, Any]:
    """Gather samples, their place in inputs, repair and times, as arguments."""
    return {
        "data": data_of(options),
        "recover": options["recover"],
        "recover_minutes": options["recover_minutes"],
        "batch_axes": options["batch_axes"],
        "costs": options["costs"],
    }


class Files(NamedTuple):
    """What a command reads and writes.

    Attributes:
        model: What is compressed.
        output: Where it goes.
        plan: Where its plan goes.
        page: Where its report goes, as a page.
    """

    model: Path
    output: Path
    plan: Path | None
    page: Path | None


def compress_and_write(
    files: Files, options: dict[str, Any], *, as_json: bool, **asked: Any
) -> str:
    """Compress a model, write it and the plan, and print the report: the end of several commands.

    Args:
        files: The model, and where results go.
        options: Those that the command takes.
        as_json: Whether one object is printed.
        asked: What else `compress` is asked for.
    Returns:
        What may come next.
    """
    from obc_onnx.report.page import compression_page
    from obc_onnx.report.terminal import report_text
    from obc_onnx.run.api import compress as compress_model

    with writer(options["device"]) as (device, writes):
        result = compress_model(
            files.model,
            run_dir=options.get("run_dir"),
            resume=options.get("resume", False),
            device=device,
            **worked_with(options),
            **asked,
        )
        if writes:
            result.save(files.output, files.plan)
            seed, run_dir = asked["seed"], options.get("run_dir")
            write_page(files.page, compression_page, result.report, seed, run_dir)
            report = in_options(result.report)
            click.echo(report.to_json() if as_json else report_text(report))
    if files.plan is None:
        return f"use it in place of {files.model}"
    return in_shell("verify", files.model, files.output, "--plan", files.plan)


def in_shell(*arguments: object) -> str:
    """Write a command of this program as a shell takes it."""
    return shlex.join(["obc-onnx", *map(str, arguments)])


@contextmanager
def writer(device: str) -> Iterator[tuple[str, bool]]:
    """Join the other processes, where there are any.

    Yields:
        The device of this one, and whether it is the one that writes and prints.
    """
    from obc_onnx.twin.processes import joined, local_device, rank

    with joined(device):
        yield local_device(device), rank() == 0


def files_read(options: dict[str, Any]) -> list[Path]:
    """List the files and folders that a command reads besides the model."""
    from pathlib import Path

    from obc_onnx.user_code import file_of

    code = [options.get("score_loss"), options.get("transform"), options.get("metric")]
    code += [name for name, _ in options.get("loss") or () if ".py:" in name]
    files = [Path(source.rpartition(":")[0]) for source in code if source is not None]
    named = [options["data"], options["eval_data"], options.get("config"), options.get("scores")]
    named.append(options.get("costs"))
    return [*files, *(file_of(path) or path for path in named if path is not None)]


def resumed_run(options: Mapping[str, Any]) -> Path | None:
    """Return the folder of the run that goes on, where one does."""
    folder: Path | None = options["run_dir"] if options["resume"] else None
    return folder


def check_targets(
    targets: Sequence[Path | None],
    model: Path,
    read: Sequence[Path],
    *,
    force: bool,
    resumed: Path | None = None,
) -> None:
    """Check before long work that files can be written, and that nothing is lost by it.

    Args:
        targets: What is to be written; None is not.
        model: What is read, with the files that hold its weights.
        read: What else is read; of a folder all that lies in it.
        force: Whether files that exist may be replaced; those that are read may not.
        resumed: The folder of a run that goes on; what it has written elsewhere it may replace.
    Raises:
        RequestError: A target exists, or is one of the others, by whatever links.
        ModelError: A target cannot be written.
    """
    from filecmp import cmp

    from obc_onnx.files import check_writable, holds
    from obc_onnx.graph.external import files_of
    from obc_onnx.run.folder import results_in

    made = [] if resumed is None else results_in(resumed)
    asked = [target for target in targets if target is not None]
    for place, target in enumerate(asked):
        check_writable(target)
        if any(holds(other, target) for other in asked[:place]):
            raise RequestError(f"'{target}' is named twice: one file would overwrite the other")
        if not target.exists():
            continue
        source = next((path for path in (*files_of(model), *read) if holds(path, target)), None)
        if source is not None:
            raise RequestError(
                f"'{target}' cannot be written: '{source}' is read, and would be destroyed; name "
                f"another file"
            )
        if not force and not any(cmp(file, target, shallow=False) for file in made):
            raise RequestError(f"'{target}' exists: name another file, or replace it by --force")
