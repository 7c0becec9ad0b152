"""Write samples in every form that is read."""

from __future__ import annotations

import io
import tarfile
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image
from small import classes, images

if TYPE_CHECKING:
    from pathlib import Path

    from numpy.typing import NDArray

N = 20
"""Samples of every set, unless a number is given."""


def picture(number: int) -> NDArray[np.uint8]:
    """Draw a picture that no other one is like."""
    return np.random.default_rng(number).integers(0, 256, (8, 8, 3), np.uint8)


def png(number: int, ending: str = "png") -> bytes:
    """Return the file of a picture."""
    held = io.BytesIO()
    Image.fromarray(picture(number)).save(held, ending)
    return held.getvalue()


def npy(array: Any) -> bytes:
    """Return the file of an array."""
    held = io.BytesIO()
    np.save(held, np.asarray(array))
    return held.getvalue()


def tar(path: Path, members: dict[str, bytes], kind: int = tarfile.PAX_FORMAT) -> Path:
    """Write a `.tar`."""
    path.parent.mkdir(exist_ok=True)
    with tarfile.open(path, "w", format=kind) as file:
        for name, content in members.items():
            entry = tarfile.TarInfo(name)
            entry.size = len(content)
            file.addfile(entry, io.BytesIO(content))
    return path


def labelled(numbers: range) -> dict[str, bytes]:
    """Return members of pictures with their classes."""
    members = {}
    for number in numbers:
        members[f"train/{number:03}.png"] = png(number)
        members[f"train/{number:03}.cls"] = b"%d\n" % (number % 4)
    return members


def in_memory(folder: Path) -> Path:
    """Write an `.npz` with labels."""
    np.savez(folder / "data.npz", x=images(), labels=classes())
    return folder / "data.npz"


def arrays(folder: Path) -> Path:
    """Write a folder of arrays without labels."""
    (folder / "arrays").mkdir()
    np.save(folder / "arrays" / "x.npy", images())
    return folder / "arrays"


def files(folder: Path) -> Path:
    """Write a folder of pictures of four classes, of another size than the model takes."""
    for number in range(N):
        place = folder / "files" / f"class{number % 4}"
        place.mkdir(parents=True, exist_ok=True)
        pixels = np.random.default_rng(number).integers(0, 256, (9, 7, 3), np.uint8)
        Image.fromarray(pixels).save(place / f"{number}.png")
    return folder / "files"


def shards(folder: Path) -> Path:
    """Write a folder of two `.tar` files of pictures with classes."""
    tar(folder / "shards" / "a.tar", labelled(range(8)))
    return tar(folder / "shards" / "b.tar", labelled(range(8, N))).parent
