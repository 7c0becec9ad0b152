"""What the command line takes, and what it becomes; groups of options that commands share."""

from __future__ import annotations

from dataclasses import fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from obc_onnx.errors import RequestError
from obc_onnx.planning.budget import REPAIRED_STEPS, STEPS, Budget
from obc_onnx.planning.scope import AUTO, BLOCKS, MIN_CHANNELS, RUNTIMES, Scope, read_config
from obc_onnx.recover.methods import METHODS, MINUTES
from obc_onnx.saliency.options import FORMER_RANKINGS, RANKINGS
from obc_onnx.samples.image_options import IMAGE_COLORS, IMAGE_LAYOUTS, IMAGE_RESIZES
from obc_onnx.samples.options import EVAL_SAMPLES, HOLDOUT

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from obc_onnx.samples.options import DataOptions

FILE = click.Path(path_type=Path)
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


def load_custom_ops(
    _context: click.Context, _parameter: click.Parameter, values: tuple[Path, ...]
) -> None:
    """Let ONNX Runtime load `--custom-op-library` options; it is imported only for that."""
    if not values:
        return
    from obc_onnx.graph.runtime import register_custom_ops

    try:
        for path in values:
            register_custom_ops(path)
    except RequestError as error:
        raise click.BadParameter(str(error)) from error


def parse_axes(
    _context: click.Context, _parameter: click.Parameter, values: tuple[str, ...]
) -> dict[str, int | None]:
    """Read `NAME:1` or `NAME:none` options; the last colon counts, since names may hold some."""
    axes: dict[str, int | None] = {}
    for value in values:
        name, _, axis = value.rpartition(":")
        if not name or not (axis.isdecimal() or axis == "none"):
            raise click.BadParameter(f"'{value}' is not of the form NAME:1 or NAME:none")
        axes[name] = None if axis == "none" else int(axis)
    return axes


def parse_numbers(
    _context: click.Context, _parameter: click.Parameter, value: str | None
) -> tuple[float, ...] | None:
    """Read `0.485,0.456,0.406`."""
    try:
        return None if value is None else tuple(float(number) for number in value.split(","))
    except ValueError:
        raise click.BadParameter(f"'{value}' is not a list of numbers") from None


def parse_factor(
    _context: click.Context, _parameter: click.Parameter, value: str | None
) -> float | None:
    """Read a number such as `0.5`, or a fraction such as `1/255`."""
    from fractions import Fraction

    try:
        return None if value is None else float(Fraction(value))
    except (ValueError, ZeroDivisionError):
        raise click.BadParameter(f"'{value}' is neither a number nor one as 1/255") from None


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


def combined(*decorators: Callable[[Any], Any]) -> Callable[[Any], Any]:
    """Make one decorator of several, so that commands share groups of options."""

    def decorate(command: Any) -> Any:
        for decorator in reversed(decorators):
            command = decorator(command)
        return command

    return decorate


_input_shape_option = click.option(
    "--input-shape",
    "--value-shape",
    "input_shape",
    metavar="NAME:1x3x224x224",
    multiple=True,
    callback=parse_shapes,
    help="Size of a dynamic input, or of what an unknown node gives; may be repeated.",
)
_custom_op_option = click.option(
    "--custom-op-library",
    type=FILE,
    multiple=True,
    expose_value=False,
    callback=load_custom_ops,
    help="Shared library of operators for ONNX Runtime; may be given several times.",
)
model_options = combined(_input_shape_option, _custom_op_option)
"""What says how the model is read."""
batch_axis_option = click.option(
    "--batch-axis",
    "batch_axes",
    metavar="NAME:AXIS|none",
    multiple=True,
    callback=parse_axes,
    help="Axis of an input that holds samples, or none for one that is given once; found by a run "
    "where it is not named. May be repeated.",
)
force_option = click.option("--force", is_flag=True, help="Replace files that exist.")
json_option = click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
latency_option = click.option(
    "--latency/--no-latency",
    default=None,
    help="Time of both models in ONNX Runtime. [measured where it takes a few seconds at most]",
)
costs_option = click.option(
    "--costs",
    type=FILE,
    help="Times that `profile` wrote. [measured first]",
)
seed_option = click.option(
    "--seed", type=click.IntRange(0, 2**63 - 1), default=0, show_default=True
)


image_options = combined(
    click.option(
        "--image-scale",
        metavar="FACTOR",
        callback=parse_factor,
        help="Factor of pixel values, which are 0 to 255; 1 for a model that takes those. A model "
        "of integers is fed them as they are.  [default: 1/255]",
    ),
    click.option(
        "--image-mean",
        metavar="A,B,C",
        callback=parse_numbers,
        help="Means that are subtracted after scaling, by channel or one for all.  [default: 0]",
    ),
    click.option(
        "--image-std",
        metavar="A,B,C",
        callback=parse_numbers,
        help="Deviations that scaled values less the mean are divided by, likewise.  [default: 1]",
    ),
    click.option(
        "--image-layout",
        type=click.Choice(IMAGE_LAYOUTS),
        help="Place of the channels; told from the input's shape by default.",
    ),
    click.option(
        "--image-color",
        type=click.Choice(IMAGE_COLORS),
        help="Order of the channels; rgb for 3 and gray for 1 by default.",
    ),
    click.option("--image-size", type=(int, int), help="Height and width, where they are open."),
    click.option(
        "--image-resize",
        type=click.Choice(IMAGE_RESIZES),
        help="Way to fit pictures of other sizes: height and width apart, the short side with the "
        "ends of the long one cut off, or the long side with the rest padded.  [default: stretch]",
    ),
    click.option(
        "--image-crop",
        metavar="SHARE",
        type=float,
        help="Share of the short side that crop leaves: 0.875 takes 224 of 256.  [default: 1]",
    ),
    click.option(
        "--image-pad",
        metavar="0..255",
        type=int,
        help="Pixel value that letterbox pads with.  [default: 0]",
    ),
)
data_options = combined(
    click.option(
        "--data",
        type=FILE,
        help="An .npz with one array per input, an .npy, a folder of .npy or images, .tar shards, "
        "JSON of Polygraphy, or FILE.py:FUNCTION that yields runs.",
    ),
    click.option(
        "--eval-data", type=FILE, help="Samples to measure on, instead of a held-out share."
    ),
    click.option(
        "--holdout",
        type=click.FloatRange(0, 1, min_open=True, max_open=True),
        default=HOLDOUT,
        show_default=True,
        help="Share of the data, drawn from all classes, that is only measured on.",
    ),
    click.option(
        "--mask-input",
        metavar="NAME",
        help="Input that is 1 at positions that hold something and 0 at padding; found by running "
        "the model where it is not named.",
    ),
    image_options,
)


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
        help="Let whole branches of residual sums go too, where that costs less than channels.",
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
method_option = click.option(
    "--recover",
    type=click.Choice(METHODS),
    default="auto",
    show_default=True,
    help="Repair without labels: layers solved again, statistics matched, or what needs no data, "
    "from norms or by fusing units; auto is the first two and then refinement by gradient, and "
    "without data the norms alone.",
)
_minutes_option = click.option(
    "--recover-minutes",
    type=click.FloatRange(min=0),
    help=f"Minutes that auto may refine by gradient, by an estimate for one core of a CPU; 0 "
    f"leaves it out. Otherwise it is {MINUTES:g}, and 0 where --epochs follow.",
)


recover_option = combined(method_option, _minutes_option)
"""What says how to repair."""


def eval_samples_option(default: int = EVAL_SAMPLES) -> Callable[[Any], Any]:
    """Return the option of how many samples are measured on."""
    return click.option(
        "--eval-samples",
        type=click.IntRange(1),
        default=default,
        show_default=True,
        help="Samples to measure on, at most.",
    )


device_option = click.option("--device", default="cpu", show_default=True, help="Where torch runs.")
config_option = click.option(
    "--config",
    type=FILE,
    help="TOML file of options, such as seed = 1, and where a plan is made of limits: a table for "
    "each pattern of names, with min, max, round_to, keep. The command line goes before it.",
)
run_options = combined(
    *(force_option, device_option, config_option, model_options, batch_axis_option, seed_option)
)
"""Of every command that scores, repairs or trains, and writes."""


def data_of(options: dict[str, Any]) -> DataOptions:
    """Gather what says where samples come from."""
    from obc_onnx.samples.image_options import ImageOptions
    from obc_onnx.samples.options import DataOptions

    return DataOptions(
        source=options["data"],
        holdout=options["holdout"],
        evaluation=options["eval_data"],
        eval_samples=options.get("eval_samples", EVAL_SAMPLES),
        mask_input=options["mask_input"],
        metric=options.get("metric"),
        lower_is_better=options.get("lower_is_better", False),
        images=ImageOptions(
            **{field.name: options[f"image_{field.name}"] for field in fields(ImageOptions)}
        ),
    )


def budget_of(options: dict[str, Any]) -> Budget:
    """Gather what a plan has to meet."""
    limits = {} if options["config"] is None else read_config(options["config"]).limits
    widths = {name: options[name] for name in ("round_to", "runtime", "min_channels")}
    targets: dict[str, Any] = {f.name: options.get(f.name) for f in Budget.target_fields()}
    return Budget(
        **targets,
        strip=options["strip"],
        depth=options["depth"],
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
