"""Files that claim what they do not hold: named before memory is taken."""

from __future__ import annotations

import io
import struct
import zipfile
import zlib
from typing import TYPE_CHECKING

import numpy as np
import pytest
import torch
from fuzz.file_mutations import STATE, _Folder
from sample_files import npy, tar
from small import chain, images

from obc_onnx.errors import DataError, RequestError
from obc_onnx.graph.model import Graph
from obc_onnx.samples.read import load_samples
from obc_onnx.training.keeper import Keeper

if TYPE_CHECKING:
    from pathlib import Path

GRAPH = Graph.from_model(chain())


def claiming(shape: str) -> bytes:
    """Return an array of a few numbers whose header says that it has another shape."""
    return npy(images(1)).replace(b"(1, 3, 8, 8)", shape.encode().ljust(12))


def test_an_array_in_an_archive_that_claims_terabytes_is_named(tmp_path: Path) -> None:
    path = tmp_path / "data.npz"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("x.npy", claiming("(9**9, 3, 8)").replace(b"9**9", b"9999"))
    with pytest.raises(DataError, match=r"'x\.npy' .* claims to hold 959904 bytes"):
        load_samples(path, GRAPH)


def test_an_array_in_a_tar_that_claims_more_is_named(tmp_path: Path) -> None:
    path = tar(tmp_path / "a.tar", {"k.x.npy": claiming("(999999999,)")})
    with pytest.raises(DataError, match=r"'k\.x\.npy' of .* claims to hold 3999999996 bytes"):
        load_samples(path, GRAPH)


def test_a_picture_that_claims_too_many_pixels_is_not_decoded(tmp_path: Path) -> None:
    chunks = [(b"IHDR", struct.pack(">IIBBBBB", 8193, 8193, 8, 2, 0, 0, 0)), (b"IEND", b"")]
    content = b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        for kind, data in chunks
    )
    (tmp_path / "a.png").write_bytes(content)
    with pytest.raises(DataError, match=r"a\.png' has 8193 x 8193 pixels"):
        load_samples(tmp_path, GRAPH).feed(slice(None))


def test_every_damage_of_a_checkpoint_is_one_sentence(tmp_path: Path) -> None:
    path = tmp_path / "checkpoint.pt"
    keeper = Keeper(_Folder(path), "")
    keeper.save(STATE)
    whole = path.read_bytes()
    state = keeper.load()
    assert state is not None
    assert torch.equal(state["student"]["w"], STATE["student"]["w"])
    rng = np.random.default_rng(0)
    places = rng.integers(len(whole), size=300)
    for damaged in (
        *(whole[:p] + bytes([whole[p] ^ 1]) + whole[p + 1 :] for p in places),
        *(whole[:p] for p in places[:30]),
        b"",
        whole + b"\0",
    ):
        path.write_bytes(damaged)
        with pytest.raises(RequestError, match="damaged"):
            keeper.load()


def test_a_whole_checkpoint_of_another_version_is_refused(tmp_path: Path) -> None:
    keeper = Keeper(_Folder(tmp_path / "checkpoint.pt"), "")
    keeper.save({"history": []})
    with pytest.raises(RequestError, match="another version"):
        keeper.load()


def test_an_archive_keeps_what_it_always_held(tmp_path: Path) -> None:
    held = io.BytesIO()
    np.savez_compressed(held, x=np.asfortranarray(images(3)), labels=np.arange(3))
    path = tmp_path / "data.npz"
    path.write_bytes(held.getvalue())
    samples = load_samples(path, GRAPH)
    np.testing.assert_array_equal(samples.feed(slice(None))["x"], images(3))
