"""Options of what a plan has to meet, and how it is made."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import click

from obc_onnx.cli.options import combined
from obc_onnx.planning.budget import REPAIRED_STEPS, STEPS, Budget
from obc_onnx.planning.scope import AUTO, BLOCKS, MIN_CHANNELS, RUNTIMES, Scope, read_config
from obc_onnx.saliency.options import FORMER_RANKINGS, RANKINGS

if TYPE_CHECKING:
    from collections.abc import Mapping

_PREFIXES = {"": 1, "K": 10**3, "M": 10**6, "G": 10**9}
_OF_BYTES = {
    **_PREFIXES,
    "B": 1,
    "KB": 10**3,
    "MB": 10**6,
    "GB": 10**9,
    "KIB": 2**10,
    "MIB": 2**20,
    "GIB": 2**30,
}
_OF_TIME = {"": 1, "US": 10**3, "MS": 10**6, "S": 10**9}
"""In nanoseconds; what has no unit is a share."""
_WHOLE = 100
"""Per cent."""


def parse_target(
    _context: click.Context, _parameter: click.Parameter, value: str | None
) -> float | None:
    """Read a share such as `0.5` or `50%`, or a number such as `12e6` or `500K`."""
    return None if value is None else _target(value, _PREFIXES)


def parse_target_bytes(
    _context: click.Context, _parameter: click.Parameter, value: str | None
) -> float | None:
    """Read a share such as `0.5` or `50%`, or bytes such as `12e6`, `500K` or `1.5MiB`."""
    return None if value is None else _target(value, _OF_BYTES)


def parse_target_time(
    _context: click.Context, _parameter: click.Parameter, value: str | None
) -> float | None:
    """Read a share such as `0.5`, or a time such as `2.5ms`, in nanoseconds."""
    found = None if value is None else _target(value, _OF_TIME, "2.5ms or 800us")
    if value is not None and found is not None and found > 1 and not value[-1].isalpha():
        raise click.BadParameter(f"'{value}' has no unit: write {value}ms, or a share as 0.5")
    return found


def _target(value: str, prefixes: Mapping[str, int], example: str = "12e6 or 500K") -> float:
    from decimal import Decimal, InvalidOperation

    if value.endswith("%"):
        return _percentage(value)
    letters = "".join(prefixes)
    number = value.rstrip(letters + letters.lower())
    factor = prefixes.get(value[len(number) :].upper())
    try:
        found = Decimal(number) * (factor or 1)
    except InvalidOperation:
        factor = None
    if factor is None:
        known = ", ".join(name for name in prefixes if name)
        raise click.BadParameter(
            f"'{value}' is neither a share such as 0.5 nor a number such as {example}; what may "
            f"follow a number: {known}"
        )
    if factor > 1 and found <= 1:
        raise click.BadParameter(f"'{value}' is a number of 1 or less; write a share as 0.5")
    return float(found)


def _percentage(value: str) -> float:
    number = value.removesuffix("%")
    if not number.replace(".", "", 1).isdecimal() or not 0 < float(number) <= _WHOLE:
        raise click.BadParameter(f"'{value}' is no share above 0% and up to 100%")
    return float(number) / _WHOLE


def parse_width(
    _context: click.Context, _parameter: click.Parameter, value: str | None
) -> float | None:
    """Read a width: a whole number is units, any other number a share."""
    try:
        return None if value is None else int(value) if value.isdecimal() else float(value)
    except ValueError:
        raise click.BadParameter(
            f"'{value}' is neither a number of units such as 8 nor a share such as 0.25"
        ) from None


def parse_multiple(
    context: click.Context, parameter: click.Parameter, value: str | None
) -> int | str | None:
    """Read a number above 0, or `auto`."""
    if value is None or value == AUTO:
        return value
    found: int = click.IntRange(1)(value, parameter, context)
    return found


scope_options = combined(
    click.option(
        "--allow-inexact",
        is_flag=True,
        help="Prune groups under a layer norm or a mean too, which a mask cannot verify.",
    ),
    click.option(
        "--exclude", multiple=True, help="Pattern of node or initializer names to leave whole."
    ),
    click.option(
        "--only",
        multiple=True,
        help="Pattern of node or initializer names to prune, and no others.",
    ),
)
_PARSERS = {"number": parse_target, "bytes": parse_target_bytes, "time": parse_target_time}
target_options = combined(
    *(
        click.option(
            f"--{field.name.replace('_', '-')}",
            metavar=f"SHARE|{field.metadata['unit'].upper()}",
            callback=_PARSERS[field.metadata["unit"]],
            help=field.metadata["help"],
        )
        for field in Budget.target_fields()
    )
)
max_drop_option = click.option(
    "--max-drop",
    type=click.FloatRange(min=0),
    help="In place of targets: cut as far as the held-out accuracy drops by no more than this, "
    "such as 0.01. Without labels agreement with the original stands for it, and for models "
    "without classes the error of the outputs.",
)
steps_option = click.option(
    "--steps",
    type=click.IntRange(1),
    help="Cut in this many steps, and score again before each: what was repaired, where no "
    f"training follows. [{REPAIRED_STEPS} with repair alone, else {STEPS}]",
)
width_options = combined(
    click.option(
        "--ranking",
        type=click.Choice([*RANKINGS, *FORMER_RANKINGS]),
        help="How to compare units of different groups: as they are, per what they save, by the "
        "same share of each group, or of each set of equal ones; per-cost, once called per-mac, "
        "for jacobian and global for other criteria, by default.",
    ),
    click.option(
        "--depth",
        is_flag=True,
        help="Let whole branches go too, where that costs less than channels: operands of sums, "
        "and layers between values of equal axes.",
    ),
    click.option(
        "--low-rank",
        is_flag=True,
        help="Let layers that channels cannot narrow, such as the classifier, become two of low "
        "rank, where that costs less.",
    ),
    click.option(
        "--round-to",
        metavar="CHANNELS|auto",
        callback=parse_multiple,
        help="Multiple of channels for widths, such as 16; auto: as --costs step. "
        f"[{BLOCKS[0]}, or less where targets need it]",
    ),
    click.option(
        "--for",
        "runtime",
        type=click.Choice([*RUNTIMES]),
        help="What the result is to run on, in place of --round-to: widths that shrink are "
        f"multiples of {', '.join(f'{block} ({name})' for name, block in RUNTIMES.items())}.",
    ),
    click.option(
        "--min-channels",
        metavar="UNITS|SHARE",
        callback=parse_width,
        help="Least width of a group that shrinks: units such as 8, or a share such as 0.25. "
        f"[{MIN_CHANNELS:g}]",
    ),
    click.option(
        "--strip/--no-strip",
        default=True,
        show_default=True,
        help="Exact removal, before anything is scored, of what does nothing; left out with "
        "--scores and --costs, which are of the model as it is.",
    ),
    scope_options,
)
"""What says how a plan is made, apart from its targets."""
plan_options = combined(target_options, max_drop_option, steps_option, width_options)


def budget_of(options: dict[str, Any]) -> Budget:
    """Gather what a plan has to meet."""
    limits = {} if options["config"] is None else read_config(options["config"]).limits
    widths = {name: options[name] for name in ("round_to", "runtime", "min_channels")}
    targets: dict[str, Any] = {f.name: options.get(f.name) for f in Budget.target_fields()}
    return Budget(
        **targets,
        strip=options["strip"],
        depth=options["depth"],
        low_rank=options["low_rank"],
        max_drop=options.get("max_drop"),
        ranking=options["ranking"],
        steps=options.get("steps"),
        scope=replace(scope_of(options), limits=limits, **widths),
    )


def scope_of(options: dict[str, Any]) -> Scope:
    """Gather what says which groups may shrink."""
    return Scope(
        exclude=tuple(options["exclude"]),
        only=tuple(options["only"]),
        allow_inexact=options["allow_inexact"],
    )
