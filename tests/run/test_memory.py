"""How many copies of its weights a large model takes at a time, and what gives them back."""

from __future__ import annotations

import ctypes
import gc
import sys
import weakref
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
from helpers import Analysed, analyse, load_tool, run_onnx
from small import archive, chain, invoke

from obc_onnx import memory
from obc_onnx.graph.external import bytes_of, files_of
from obc_onnx.graph.model import Graph
from obc_onnx.measuring import noise
from obc_onnx.measuring.noise import disturbed
from obc_onnx.memory import make_room
from obc_onnx.twin.build import derived_twin, run_module
from obc_onnx.twin.tensors import parameter_name, to_tensor

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from numpy.typing import NDArray

VOCABULARY = 100
MOST_COPIES = 3.5
"""Of the weights, in arrays: the original, the masked or the cut one, and what noise has moved."""


class Ledger:
    """The bytes of all arrays that graphs hold and that are alive.

    Attributes:
        most: The most at a time.
    """

    def __init__(self) -> None:
        self._alive: dict[int, int] = {}
        self.most = 0

    def add(self, graph: Graph) -> None:
        for array in graph.initializers.values():
            owner: Any = array
            while isinstance(owner.base, np.ndarray):
                owner = owner.base
            if id(owner) not in self._alive:
                self._alive[id(owner)] = owner.nbytes
                weakref.finalize(owner, self._alive.pop, id(owner))
        self.most = max(self.most, sum(self._alive.values()))


@pytest.fixture
def by_hand() -> Iterator[None]:
    """Let Python look for what is unused only where it is told to."""
    gc.collect()
    gc.disable()
    yield
    gc.enable()


@pytest.fixture
def ledger(monkeypatch: pytest.MonkeyPatch) -> Ledger:
    found, true_init = Ledger(), Graph.__init__

    def init(graph: Graph, *args: Any, **options: Any) -> None:
        true_init(graph, *args, **options)
        found.add(graph)

    monkeypatch.setattr(Graph, "__init__", init)
    return found


@pytest.fixture
def whole() -> Analysed:
    return analyse(chain())


@pytest.mark.usefixtures("by_hand")
def test_a_compression_keeps_few_copies_of_weights(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, ledger: Ledger
) -> None:
    """Without Python looking for what is unused: what graphs hold is part of no circle."""
    tool, model = load_tool("make_decoder"), tmp_path / "model.onnx"
    tool.write(model, tool.Decoder(layers=1, width=128, vocabulary=VOCABULARY), seed=0)
    tokens = np.random.default_rng(0).integers(0, VOCABULARY, (20, 6))
    monkeypatch.setattr(memory, "_MUCH", 2**40)
    paths = ("-o", tmp_path / "small.onnx", "--data", archive(tmp_path, tokens=tokens))
    result = invoke("compress", str(model), *map(str, paths))
    assert result.exit_code == 0, result.output
    assert ledger.most < MOST_COPIES * bytes_of(files_of(model))


@pytest.mark.usefixtures("by_hand")
@pytest.mark.parametrize(("n_bytes", "stays"), [(2**28 - 1, True), (2**28, False)])
def test_room_is_made_where_much_is_about_to_be_taken(n_bytes: int, *, stays: bool) -> None:
    circle: dict[str, Any] = {"array": np.zeros(3)}
    circle["itself"], array = circle, weakref.ref(circle["array"])
    del circle
    make_room(n_bytes)
    assert (array() is not None) == stays


@pytest.mark.skipif(sys.platform != "linux", reason="malloc_trim is a function of glibc")
def test_freed_pieces_go_back_to_the_system(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[int] = []
    monkeypatch.setattr(ctypes, "CDLL", lambda _: SimpleNamespace(malloc_trim=asked.append))
    make_room(2**28 - 1)
    assert asked == []
    make_room(2**28)
    assert asked == [0]


def test_a_c_library_that_keeps_no_pieces_is_not_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ctypes, "CDLL", lambda _: SimpleNamespace())
    make_room(2**28)


def test_a_frozen_twin_takes_no_memory_for_weights_and_computes_the_same(whole: Analysed) -> None:
    graph, feed = whole.graph, {"x": np.ones((2, 3, 8, 8), np.float32)}
    twin = derived_twin(graph, whole.coupling, frozen=True)
    assert {parameter_name(name) for name in graph.initializers} == dict(
        twin.named_parameters()
    ).keys()
    for name, array in graph.initializers.items():
        parameter = twin.get_parameter(parameter_name(name))
        assert (parameter.data_ptr(), parameter.requires_grad) == (array.ctypes.data, False)
    (found,) = run_module(twin, graph, feed).values()
    (expected,) = run_onnx(graph, feed).values()
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6)


def test_what_a_twin_learns_does_not_reach_the_graph(whole: Analysed) -> None:
    before = {name: array.copy() for name, array in whole.graph.initializers.items()}
    twin = derived_twin(whole.graph, whole.coupling)
    with torch.no_grad():
        for parameter in twin.parameters():
            assert parameter.requires_grad
            parameter.add_(1)
    for name, array in before.items():
        np.testing.assert_array_equal(whole.graph.initializers[name], array)


@pytest.mark.parametrize("form", ["read-only", "backwards", "transposed", "small integers"])
@pytest.mark.filterwarnings("error")
def test_what_torch_cannot_look_at_is_copied(form: str) -> None:
    array: NDArray[Any] = np.arange(6, dtype=np.float32).reshape(2, 3).copy()
    if form == "read-only":
        array.flags.writeable = False
    elif form == "small integers":
        array = array.astype(np.uint16)
    else:
        array = array[::-1] if form == "backwards" else array.T
    tensor = to_tensor(array, shared=True)
    assert tensor.data_ptr() != array.ctypes.data
    np.testing.assert_array_equal(tensor.numpy(), array)


@pytest.mark.parametrize("at_a_time", [4, 7, 2**20])
def test_weights_move_the_same_however_many_are_moved_at_a_time(
    whole: Analysed, monkeypatch: pytest.MonkeyPatch, at_a_time: int
) -> None:
    monkeypatch.setattr(noise, "_AT_A_TIME", at_a_time)
    moved = disturbed(whole.graph, np.random.default_rng(5), 2).initializers
    rng, epsilon = np.random.default_rng(5), 2 * np.finfo(np.float32).eps
    for name, array in whole.graph.initializers.items():
        if array.ndim > 1:
            up = rng.integers(0, 2, array.shape, np.uint8)
            factors = np.where(up, 1 + epsilon, 1 - epsilon).astype(np.float32)
            np.testing.assert_array_equal(moved[name], array * factors)
