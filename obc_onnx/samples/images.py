"""What a model wants of pictures: the options that say so, and what they mean for one input."""

from __future__ import annotations

import io
import warnings
from dataclasses import dataclass
from fractions import Fraction
from typing import TYPE_CHECKING, Any

import numpy as np

from obc_onnx.errors import DataError
from obc_onnx.graph.node import is_float
from obc_onnx.samples.image_options import (
    IMAGE_COLORS,
    IMAGE_LAYOUTS,
    IMAGE_RESIZES,
    PIXEL_SCALE,
    ImageColor,
    ImageLayout,
    ImageOptions,
    ImageResize,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from numpy.typing import NDArray
    from PIL.Image import Image

    from obc_onnx.graph.node import Port

IMAGE_RANK = 4
MOST_PIXELS = 2**26
"""Of a picture: a few bytes may claim any number, and decoding takes several bytes for each."""
_FORMATS = ("BMP", "JPEG", "PNG", "WEBP")
"""What is opened, told by content: other decoders of Pillow start programs, or read whole pages."""
_COLORS: dict[int, ImageColor] = {1: "gray", 3: "rgb"}
"""What pictures of so many channels hold, unless options say otherwise."""
_CHANNELS: dict[ImageColor, int] = {"gray": 1, "rgb": 3, "bgr": 3}
_CHANNEL_AXIS: dict[ImageLayout, int] = {"NCHW": 1, "NHWC": 3}
_DEEP = ("I", "F")
"""How Pillow's names for pixels of more than 8 bits begin."""
_LARGEST = 255
_FOR_FLOATS = ("`ImageOptions.scale`", "`ImageOptions.mean`", "`ImageOptions.std`")
_RESIZED = {"stretch": "stretched", "crop": "cropped", "letterbox": "letterboxed"}


@dataclass(frozen=True)
class Preparation:
    """How pictures become one input of a model, with nothing left open.

    Attributes:
        layout: Where the channels are.
        color: What they are.
        size: (height, width).
        resize: How pictures of another size fit in.
        crop: The share of the short side that "crop" leaves.
        pad: The pixel value that "letterbox" fills with.
        scaling: (scale, mean, std), the last two by channel; None feeds pixels as they are.
    """

    layout: ImageLayout
    color: ImageColor
    size: tuple[int, int]
    resize: ImageResize
    crop: float
    pad: int
    scaling: tuple[float, tuple[float, ...], tuple[float, ...]] | None

    @property
    def shape(self) -> tuple[int, int, int]:
        """Of one picture as the model takes it."""
        channels = _CHANNELS[self.color]
        return (channels, *self.size) if self.layout == "NCHW" else (*self.size, channels)

    def decode(self, content: bytes, where: Callable[[], str]) -> NDArray[np.uint8]:
        """Read a picture, and lay it out as the model takes it.

        Args:
            content: Of a BMP, JPEG, PNG or WebP file.
            where: Says what messages call it.
        Raises:
            DataError: It is none of those, damaged, huge, or has more than 8 bits per channel.
        """
        from PIL import Image, UnidentifiedImageError

        try:
            with (
                warnings.catch_warnings(action="ignore", category=Image.DecompressionBombWarning),
                Image.open(io.BytesIO(content), formats=_FORMATS) as image,
            ):
                _check_size(image, where)
                if image.mode.startswith(_DEEP):
                    raise DataError(
                        f"image {where()} has more than 8 bits per channel: convert it first"
                    )
                mode = "L" if self.color == "gray" else "RGB"
                picture = self._resized(image.convert(mode))
        except (
            UnidentifiedImageError,
            OSError,
            SyntaxError,  # Pillow's word for damaged chunks
            ValueError,
            Image.DecompressionBombError,
        ) as error:
            raise DataError(
                f"image {where()} cannot be read as BMP, JPEG, PNG or WebP: damaged, or huge?"
            ) from error
        pixels = np.asarray(picture, np.uint8).reshape(*self.size, -1)
        pixels = pixels[..., ::-1] if self.color == "bgr" else pixels
        return pixels if self.layout == "NHWC" else pixels.transpose(2, 0, 1)

    def _resized(self, picture: Image) -> Image:
        from PIL import ImageOps
        from PIL.Image import Resampling

        size, bicubic = self.size[::-1], Resampling.BICUBIC
        if self.resize == "crop":
            return ImageOps.fit(picture, size, bicubic, bleed=(1 - self.crop) / 2)
        if self.resize == "letterbox":
            color: Any = self.pad if self.color == "gray" else (self.pad,) * 3
            return ImageOps.pad(picture, size, bicubic, color)
        return picture.resize(size, bicubic)

    def scaled(self, pixels: NDArray[np.uint8]) -> NDArray[Any]:
        """Return pixels, shape [samples, ...], as the numbers that the model takes."""
        if self.scaling is None:
            return pixels
        scale, *per_channel = self.scaling
        shape = (-1, 1, 1) if self.layout == "NCHW" else (-1,)
        mean, std = (np.array(values, np.float32).reshape(shape) for values in per_channel)
        values = pixels.astype(np.float32) * np.float32(scale)
        return np.asarray((values - mean) / std, np.float32)

    def __str__(self) -> str:
        height, width = self.size
        how = _RESIZED[self.resize]
        how += f" from {self.crop:g} of the short side" if self.resize == "crop" else ""
        text = f"{self.color} pictures as {self.layout}, {how} to {height} x {width}"
        text += f", padded with {self.pad}" if self.resize == "letterbox" else ""
        if self.scaling is None:
            return f"{text}, pixels as they are"
        scale, mean, std = self.scaling
        short = Fraction(scale).limit_denominator(_LARGEST)
        factor = str(short) if float(short) == scale else f"{scale:g}"
        return f"{text}, (pixel * {factor} - {_listed(mean)}) / {_listed(std)}"


def _check_size(image: Image, where: Callable[[], str]) -> None:
    """Check the size that a picture claims, before its pixels are decoded."""
    if image.width * image.height > MOST_PIXELS:
        raise DataError(
            f"image {where()} has {image.width} x {image.height} pixels, more than {MOST_PIXELS}: "
            f"make it smaller first"
        )


def prepare(port: Port, options: ImageOptions) -> Preparation:
    """Decide how pictures become an input; every option is checked here.

    Args:
        port: The input.
        options: What was asked for.
    Raises:
        DataError: The options or the input do not fit pictures.
    """
    _check_choices(options)
    _check_numbers(options)
    shape = port.shape or ()
    if len(shape) != IMAGE_RANK:
        raise DataError(f"input '{port.name}' has {len(shape)} axes; images need {IMAGE_RANK}")
    layout = options.layout or _layout_of(port, options.color)
    color = _color_of(port, layout, options.color)
    return Preparation(
        layout=layout,
        color=color,
        size=_size_of(port, layout, options.size),
        resize=options.resize or "stretch",
        crop=1.0 if options.crop is None else options.crop,
        pad=options.pad or 0,
        scaling=_scaling_of(port, _CHANNELS[color], options),
    )


def channels_last(shape: Sequence[int | str | None]) -> bool:
    """Say where a shape of rank 4 has its channels: second, unless only the last can be those."""
    return shape[1] not in _COLORS and shape[3] in _COLORS


def _check_choices(options: ImageOptions) -> None:
    """Check what is one of several words, and that numbers go with the word that they are for."""
    known = {"layout": IMAGE_LAYOUTS, "color": IMAGE_COLORS, "resize": IMAGE_RESIZES}
    for name, words in known.items():
        if (word := getattr(options, name)) not in {None, *words}:
            raise DataError(
                f"`ImageOptions.{name}` must be one of {', '.join(words)}, found '{word}'"
            )
    for name, way in (("crop", "crop"), ("pad", "letterbox")):
        if getattr(options, name) is not None and options.resize != way:
            raise DataError(
                f"`ImageOptions.{name}` is for `ImageOptions(resize='{way}')`: give that too"
            )


def _check_numbers(options: ImageOptions) -> None:
    """Check what does not depend on the input."""
    scale = () if options.scale is None else (options.scale,)
    for name, values in (("scale", scale), ("mean", options.mean), ("std", options.std)):
        if not np.isfinite(values or ()).all():
            raise DataError(f"`ImageOptions.{name}` must be finite, found {_listed(values or ())}")
        if name != "mean" and min(values or (1,)) <= 0:
            raise DataError(f"`ImageOptions.{name}` must be above 0, found {_listed(values or ())}")
    if options.crop is not None and not 0 < options.crop <= 1:
        raise DataError(
            f"`ImageOptions.crop` must be above 0 and at most 1, found {options.crop:g}"
        )
    if options.pad is not None and not 0 <= options.pad <= _LARGEST:
        raise DataError(
            f"`ImageOptions.pad` must be a pixel value of 0 to 255, found {options.pad}"
        )


def _layout_of(port: Port, color: ImageColor | None) -> ImageLayout:
    shape = port.shape or ()
    counts = set(_COLORS) if color is None else {_CHANNELS[color]}
    found = [layout for layout, axis in _CHANNEL_AXIS.items() if shape[axis] in counts]
    if len(found) == 1:
        return found[0]
    wanted = " or ".join(map(str, sorted(counts)))
    told = "no axis" if not found else "more than one axis"
    raise DataError(
        f"input '{port.name}' has shape {shape}: {told} of {wanted} channels; where it takes "
        f"pictures, say how by `ImageOptions.layout` and `ImageOptions.color`"
    )


def _color_of(port: Port, layout: ImageLayout, color: ImageColor | None) -> ImageColor:
    axis = _CHANNEL_AXIS[layout]
    channels = (port.shape or ())[axis]
    if isinstance(channels, str):
        if color is None:
            raise DataError(
                f"input '{port.name}' of shape {port.shape} leaves its channels open: give "
                f"`ImageOptions.color`"
            )
        return color
    fits = channels in _COLORS if color is None else channels == _CHANNELS[color]
    if not fits:
        wanted = "1 or 3" if color is None else f"{_CHANNELS[color]}, as {color} pictures have"
        raise DataError(
            f"input '{port.name}' of shape {port.shape} takes {channels} channels on axis {axis}, "
            f"not {wanted}"
        )
    return color or _COLORS[channels]


def _size_of(port: Port, layout: ImageLayout, size: tuple[int, int] | None) -> tuple[int, int]:
    shape = port.shape or ()
    own = shape[2:4] if layout == "NCHW" else shape[1:3]
    height, width = size or own
    if not isinstance(height, int) or not isinstance(width, int):
        raise DataError(f"input '{port.name}' has a dynamic size: give `ImageOptions.size`")
    if min(height, width) < 1:
        raise DataError(f"`ImageOptions(size=({height}, {width}))` is not a size of a picture")
    for want, got in zip(own, (height, width), strict=True):
        if isinstance(want, int) and want != got:
            raise DataError(
                f"`ImageOptions(size=({height}, {width}))` does not fit input "
                f"'{port.name}' of shape {shape}"
            )
    return height, width


def _scaling_of(
    port: Port, channels: int, options: ImageOptions
) -> tuple[float, tuple[float, ...], tuple[float, ...]] | None:
    """Return (scale, mean, std), None for an input that takes the pixels themselves."""
    what = f"input '{port.name}' takes {port.dtype}"
    if is_float(port.dtype):
        mean = _per_channel("mean", (0.0,) if options.mean is None else options.mean, channels)
        std = _per_channel("std", (1.0,) if options.std is None else options.std, channels)
        return PIXEL_SCALE if options.scale is None else options.scale, mean, std
    if not np.can_cast(np.uint8, port.dtype, "safe"):
        raise DataError(f"{what}, which does not hold pixels of 0 to 255: give it as an array")
    useless = [name for name in options.given if name in _FOR_FLOATS]
    if useless:
        raise DataError(
            f"{what}, and is fed the pixels of 0 to 255 as they are: leave {', '.join(useless)} out"
        )
    return None


def _per_channel(name: str, values: tuple[float, ...], channels: int) -> tuple[float, ...]:
    if len(values) not in {1, channels}:
        needed = "1 number" if channels == 1 else f"1 or {channels} numbers"
        raise DataError(f"`ImageOptions.{name}` needs {needed}, found {len(values)}")
    return values * (channels // len(values))


def _listed(values: Sequence[float]) -> str:
    """Write numbers one after the other, equal ones once."""
    return ", ".join(f"{value:g}" for value in (values[:1] if len(set(values)) == 1 else values))
