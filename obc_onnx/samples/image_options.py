"""How pictures become inputs: names and numbers that the command line and Python share.

Loads nothing heavy.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Literal, get_args

ImageLayout = Literal["NCHW", "NHWC"]
IMAGE_LAYOUTS: tuple[ImageLayout, ...] = get_args(ImageLayout)
ImageColor = Literal["rgb", "bgr", "gray"]
IMAGE_COLORS: tuple[ImageColor, ...] = get_args(ImageColor)
ImageResize = Literal["stretch", "crop", "letterbox"]
IMAGE_RESIZES: tuple[ImageResize, ...] = get_args(ImageResize)
PIXEL_SCALE = 1 / 255
"""What pixel values are multiplied by where the model takes floats."""


@dataclass(frozen=True)
class ImageOptions:
    """How pictures become an input: (pixel * scale - mean) / std; None takes the default.

    An input of integers is fed the pixels as they are, and takes no scale, mean or std.

    Attributes:
        mean: Of scaled values: one number per channel in the order of `color`, or one for all;
            0 by default.
        std: The same, above 0; 1 by default.
        size: (height, width) of the input; the model's own by default.
        scale: What pixel values, 0 to 255, are multiplied by; 1/255 by default.
        layout: Where the channels are; told from the input's shape by default.
        color: What the channels are; rgb where there are 3 and gray where there is 1 by default.
        resize: How pictures of another size fit in, always by bicubic interpolation. "stretch",
            the default, changes height and width apart; "crop" resizes the short side and cuts
            off the ends of the long one; "letterbox" resizes the long side and pads the short one.
        crop: For "crop", the share of the short side that is left: 0.875 resizes it to 256 pixels
            where 224 are taken from the middle; 1 by default.
        pad: For "letterbox", the pixel value that fills the rest, 0 to 255; 0 by default.
    """

    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None
    size: tuple[int, int] | None = None
    scale: float | None = None
    layout: ImageLayout | None = None
    color: ImageColor | None = None
    resize: ImageResize | None = None
    crop: float | None = None
    pad: int | None = None

    @property
    def given(self) -> list[str]:
        """The options that are not left to their defaults, as messages name them."""
        named = (field.name for field in fields(self) if getattr(self, field.name) is not None)
        return [f"`ImageOptions.{name}`" for name in named]
