"""Help of commands with many options: in sections, the common options first."""

from __future__ import annotations

from fnmatch import fnmatchcase
from functools import partial
from typing import TYPE_CHECKING, Any

import click

from obc_onnx.cli.run_file import with_file
from obc_onnx.errors import RequestError
from obc_onnx.training.options import FIELDS

if TYPE_CHECKING:
    from collections.abc import Mapping

SECTIONS: dict[str, tuple[str, ...]] = {
    "Files": (
        *("output", "kit", "brought", "plan", "plan_out", "page", "report_out", "plot"),
        *("scores", "force", "as_json"),
    ),
    "Samples": ("data", "eval_*", "metric", "lower_is_better", "holdout", "mask_input", "image_*"),
    "Budget": (
        *("target*", "cost", "costs", "pick", "max_drop", "round_to", "runtime", "min_channels"),
        *("ranking", "depth", "low_rank", "steps"),
        *("allow_inexact", "exclude", "only"),
    ),
    "Scores": (
        *("criterion", "preset", "objective", "score_*", "rows", "batches"),
        *("reduction", "normalizer", "depthwise", "amp"),
    ),
    "Repair": ("recover", "recover_*"),
    "Training": (
        *("epochs", *FIELDS, "train_preset", "crop", "flip", "transform", "workers"),
        *("sparse_*", "run_dir", "resume"),
    ),
    "Engine": (
        *("engine", "engine_*", "provider", "provider_options", "threads"),
        *("graph_optimization", "batch", "designs"),
    ),
    "Run": ("*",),
}
"""Patterns of parameter names; an option is in the first section that has one of its name."""
COMMON = (
    *("output", "kit", "brought", "plan", "plan_out", "page", "force", "as_json"),
    *("data", "eval_data"),
    *("image_scale", "image_mean", "image_std"),
    *("target*", "cost", "costs", "pick", "max_drop", "round_to", "exclude", "criterion"),
    *("recover", "recover_minutes"),
    *("engine", "provider", "threads", "engine_command", "batch"),
    *("epochs", "lr", "run_dir", "resume", "latency", "device", "input_shape", "batch_axes"),
)
"""Patterns of the names of parameters that plain help shows."""
HELP = {"help_option_names": ["-h", "--help"]}
"""Settings of the program and of each of its commands."""
_HELPING = frozenset({*HELP["help_option_names"], "--help-all"})
ARGUMENTS = f"{__name__}.arguments"
"""Where a context keeps what the command was given."""
_FEW = 16
"""Options of a command whose help is one list."""


def section_of(name: str) -> str:
    """Return the section of a parameter."""
    return next(title for title, names in SECTIONS.items() if _matches(name, names))


def is_common(name: str) -> bool:
    """Say whether plain help shows a parameter."""
    return _matches(name, COMMON)


def _matches(name: str, patterns: tuple[str, ...]) -> bool:
    return any(fnmatchcase(name, pattern) for pattern in patterns)


class SectionedCommand(click.Command):
    """A command whose help has sections, where it has more than a few options.

    Then `--help` shows the common options, and `--help-all` shows all.

    Args:
        former: What options of the command were called, which is understood still.
        args: What a command is made of, as click takes it.
        kwargs: The same.
    """

    def __init__(self, *args: Any, former: Mapping[str, str] | None = None, **kwargs: Any) -> None:
        self._former = former or {}
        super().__init__(*args, **kwargs)
        self.context_settings = {**HELP, **self.context_settings}
        self._is_long = sum(isinstance(own, click.Option) for own in self.params) > _FEW
        if self._is_long:
            text = "Show all options and exit."
            self.params.append(
                click.Option(
                    ["--help-all"],
                    is_flag=True,
                    is_eager=True,
                    expose_value=False,
                    callback=_show_all,
                    help=text,
                )
            )

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Keep the arguments, those of a file among them, for reports that name the command."""
        said: dict[str, str] = {}
        try:
            # help and completion do not wait for a file that may be broken
            if not ctx.resilient_parsing and _HELPING.isdisjoint(args):
                args, said = with_file(self, args)
        except RequestError as error:
            raise click.ClickException(str(error)) from error
        ctx.meta[ARGUMENTS] = [*args]
        named = (arg.partition("=") for arg in args)
        try:
            return super().parse_args(
                ctx, [self._former.get(name, name) + sign + rest for name, sign, rest in named]
            )
        except click.BadParameter as error:
            where = None if error.param is None else said.get(str(error.param.name))
            if where is None:
                raise
            text = f"{error.message.rstrip('.')}, as {where} says."
            raise click.BadParameter(text, error.ctx, error.param, error.param_hint) from error

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the options, section by section."""
        if not self._is_long:
            super().format_options(ctx, formatter)
            return
        rows: dict[str, list[tuple[str, str]]] = {title: [] for title in SECTIONS}
        for option in self.get_params(ctx):
            record = option.get_help_record(ctx)
            name = str(option.name)
            is_help = option.is_eager
            if record is not None and (ctx.meta.get(_ALL) or is_help or is_common(name)):
                rows[section_of(name)].append(record)
        for title, own in rows.items():
            if own:
                with formatter.section(title):
                    formatter.write_dl(own)


_ALL = f"{__name__}.all"


def _show_all(
    ctx: click.Context,
    _parameter: click.Parameter,
    value: bool,  # noqa: FBT001 - as click calls it
) -> None:
    if value and not ctx.resilient_parsing:
        ctx.meta[_ALL] = True
        click.echo(ctx.get_help())
        ctx.exit()


command = partial(click.command, cls=SectionedCommand)
"""What makes a function a command."""
