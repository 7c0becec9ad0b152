"""Random changes of pictures while something learns: crop, flip, and a function of the user's."""

from __future__ import annotations

from dataclasses import dataclass, fields
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np

from obc_onnx.errors import RequestError
from obc_onnx.samples.images import IMAGE_RANK, channels_last
from obc_onnx.user_code import load_function

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from numpy.typing import NDArray

    Transform = Callable[[NDArray[Any], np.random.Generator], Any]

_PLACEMENT, _TRANSFORM = 0, 1
"""What numbers are drawn for: each has a generator of its own."""


@dataclass(frozen=True)
class Augmentation:
    """What is done to pictures: inputs of rank 4, in this order.

    What is drawn for a sample depends on the seed, the epoch and its index only: neither batches
    nor the number of processes change it. All inputs of a sample get the same, so that a picture
    and its mask stay together.

    Attributes:
        crop: Pad by so many pixels on each side, and crop to the old size anywhere. What is padded
            is zero as the model takes it: the mean colour of pictures that are normalised, and
            black where the model itself normalises.
        flip: Mirror half of the pictures, left to right.
        transform: `FILE.py:FUNCTION`, which takes one picture as the model takes it, without an
            axis of samples, and a `numpy.random.Generator`, and returns one of the same shape and
            type. It has to draw from that generator alone to be repeatable.
    Raises:
        RequestError: `crop` is negative.
    """

    crop: int = 0
    flip: bool = False
    transform: str | None = None

    def __post_init__(self) -> None:
        if self.crop < 0:
            raise RequestError(f"`Augmentation.crop` must be at least 0, found {self.crop}")

    def check(self, shapes: Mapping[str, tuple[int, ...]]) -> None:
        """Check that there is something to change, before any work is done.

        Args:
            shapes: Of the inputs' arrays, [samples, ...].
        Raises:
            RequestError: No input holds pictures, one is not larger than the crop, or the function
                cannot be loaded.
        """
        pictures = {name: shape for name, shape in shapes.items() if len(shape) == IMAGE_RANK}
        if not pictures:
            raise RequestError(
                "pictures cannot be cropped, flipped or transformed: no input of the model has "
                f"{IMAGE_RANK} axes"
            )
        for name, shape in pictures.items():
            height, width = (shape[axis + 1] for axis in _image_axes(shape))
            if self.crop >= min(height, width):
                raise RequestError(
                    f"crop {self.crop} could push all of input '{name}' of {height} x {width} "
                    f"pixels out of sight: it must be smaller than both"
                )
        _ = self._function

    def apply(
        self,
        feed: Mapping[str, NDArray[Any]],
        which: NDArray[np.int64],
        epoch: int,
        seed: int,
    ) -> dict[str, NDArray[Any]]:
        """Return a changed copy of samples; inputs that are no pictures are handed on.

        Args:
            feed: Inputs by name, of the model's types, shape [chosen, ...].
            which: The index of each sample, shape [chosen].
            epoch: The pass over the samples.
            seed: Of the run.
        Raises:
            RequestError: The user's function returns something else than it should.
        """
        return {
            name: self._changed(array, which, (seed, epoch)) if array.ndim == IMAGE_RANK else array
            for name, array in feed.items()
        }

    def _changed(
        self, pictures: NDArray[Any], which: NDArray[np.int64], key: tuple[int, int]
    ) -> NDArray[Any]:
        rows, columns = _image_axes(pictures.shape)
        changed = np.empty_like(pictures)
        for place, index in enumerate(which):
            picture = pictures[place]
            rng = np.random.default_rng((*key, int(index), _PLACEMENT))
            mirrored = rng.random() < 0.5  # noqa: PLR2004 - as often as not
            if self.crop:
                down, right = (int(n) for n in rng.integers(-self.crop, self.crop + 1, 2))
                picture = _shifted(_shifted(picture, down, rows), right, columns)
            if self.flip and mirrored:
                picture = np.flip(picture, columns)
            if self._function is not None:
                own = np.random.default_rng((*key, int(index), _TRANSFORM))
                picture = self._transformed(self._function, picture, own)
            changed[place] = picture
        return changed

    def _transformed(
        self, function: Transform, picture: NDArray[Any], rng: np.random.Generator
    ) -> NDArray[Any]:
        given = np.array(picture, order="C")  # the function may write into it
        result = function(given, rng)
        if isinstance(result, np.ndarray):
            if result.shape == picture.shape and result.dtype == picture.dtype:
                return result
            found = f"one of shape {list(result.shape)} and type {result.dtype}"
        else:
            found = f"a {type(result).__name__}"
        raise RequestError(
            f"'{self.transform}' has to return a numpy array like the one it is given, of shape "
            f"{list(picture.shape)} and type {picture.dtype}; it gave {found}"
        )

    @cached_property
    def _function(self) -> Transform | None:
        return None if self.transform is None else load_function(self.transform)

    def __getstate__(self) -> dict[str, Any]:
        """Leave out the loaded function, which does not pickle: a copy loads it again."""
        return {field.name: getattr(self, field.name) for field in fields(self)}


def _image_axes(shape: tuple[int, ...]) -> tuple[int, int]:
    """Return the axes of height and width in a single picture, from the shape of several."""
    return (0, 1) if channels_last(shape) else (1, 2)


def _shifted(picture: NDArray[Any], distance: int, axis: int) -> NDArray[Any]:
    """Move a picture towards larger positions of an axis; zeros come in."""
    if distance == 0:
        return picture
    moved = np.zeros_like(picture)
    size = picture.shape[axis]
    lead = (slice(None),) * axis
    target = slice(max(distance, 0), size + min(distance, 0))
    source = slice(max(-distance, 0), size - max(distance, 0))
    moved[(*lead, target)] = picture[(*lead, source)]
    return moved
