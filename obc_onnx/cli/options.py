"""What the command line takes, and what it becomes; groups of options that commands share."""

from __future__ import annotations

from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from obc_onnx.errors import RequestError
from obc_onnx.recover.methods import METHODS, MINUTES
from obc_onnx.samples.image_options import IMAGE_COLORS, IMAGE_LAYOUTS, IMAGE_RESIZES
from obc_onnx.samples.options import EVAL_SAMPLES, HOLDOUT

if TYPE_CHECKING:
    from collections.abc import Callable

    from obc_onnx.samples.options import DataOptions

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
