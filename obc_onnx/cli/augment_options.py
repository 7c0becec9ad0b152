"""Options of the command line that say how samples are read and changed in training."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from obc_onnx.cli.options import combined
from obc_onnx.training.options import TrainingOptions

if TYPE_CHECKING:
    from obc_onnx.samples.augmentation import Augmentation

augment_options = combined(
    click.option(
        "--crop",
        type=click.IntRange(0),
        default=0,
        show_default=True,
        help="Train on random crops of pictures that are padded by so many pixels.",
    ),
    click.option("--flip", is_flag=True, help="Train on pictures mirrored at random too."),
    click.option(
        "--transform",
        metavar="FILE.py:FUNCTION",
        help="Change training pictures with this: from one as the model takes it and a numpy "
        "Generator to one of the same shape and type.",
    ),
    click.option(
        "--workers",
        type=click.IntRange(0),
        default=TrainingOptions.workers,
        show_default=True,
        help="Processes that read training samples ahead; 0 reads in this one.",
    ),
)


def augmentation_of(options: dict[str, Any]) -> Augmentation | None:
    """Gather what says how pictures are changed; None leaves them as they are."""
    from obc_onnx.samples.augmentation import Augmentation

    chosen = Augmentation(options["crop"], options["flip"], options["transform"])
    return None if chosen == Augmentation() else chosen
