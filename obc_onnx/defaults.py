"""Defaults that the command line and the Python interface share, each written once."""

from typing import Literal, get_args

Ranking = Literal["global", "per-cost", "uniform", "isomorphic"]
RANKINGS: tuple[str, ...] = get_args(Ranking)
FORMER_RANKINGS: dict[str, Ranking] = {"per-mac": "per-cost"}
"""Names that recorded experiments use; with a target of MACs alone they order units alike."""

ImageLayout = Literal["NCHW", "NHWC"]
IMAGE_LAYOUTS: tuple[str, ...] = get_args(ImageLayout)
ImageColor = Literal["rgb", "bgr", "gray"]
IMAGE_COLORS: tuple[str, ...] = get_args(ImageColor)
ImageResize = Literal["stretch", "crop", "letterbox"]
IMAGE_RESIZES: tuple[str, ...] = get_args(ImageResize)
PIXEL_SCALE = 1 / 255
"""What pixel values are multiplied by where the model takes floats."""

TARGET_MACS = 0.5
"""Where no other target is given."""
STEPS = 4
BLOCKS = (8, 4, 2, 1)
"""Multiples of channels for widths that shrink; the first with which the targets can be met.

Convolutions of ONNX Runtime work on blocks of 8 or 16 channels and leave that layout where a width
is no multiple; tensor cores take multiples of 8.
"""
MIN_CHANNELS = 1 / 8
"""Share of its units that a group keeps."""
HOLDOUT = 0.2
SCORED_SAMPLES = 512
MEASURED_SAMPLES = 512
"""Held-out samples that the sensitivity of groups is measured on."""
BATCH_SIZE = 64
LEARNING_RATE = 0.01
"""Of sparse learning; that of fine-tuning is found by trials."""
VALIDATION = 0.1
FINETUNE_EPOCHS = 20
"""Of the command that does nothing but train."""
