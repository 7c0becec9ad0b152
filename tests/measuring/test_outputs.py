"""What a model gives for samples is computed once, for all who ask."""

from __future__ import annotations

import weakref
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from helpers import analyse
from nets import draw_samples, model_of

from obc_onnx.graph.session import Session
from obc_onnx.measuring import outputs as module
from obc_onnx.measuring.baseline import examine
from obc_onnx.measuring.error import Distance
from obc_onnx.measuring.outputs import Outputs, accuracy

if TYPE_CHECKING:
    from collections.abc import Mapping

    from obc_onnx.coupling.model import Coupling
    from obc_onnx.samples.samples import Samples


@pytest.fixture
def counts(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many samples each run of ONNX Runtime takes."""
    found, run = list[int](), Session.run

    def counted(session: Session, feed: Mapping[str, Any]) -> dict[str, Any]:
        found.append(len(feed["x"]))
        return run(session, feed)

    monkeypatch.setattr(Session, "run", counted)
    return found


def setting(n_samples: int) -> tuple[Coupling, Samples]:
    graph, _, coupling = analyse(model_of("dense"))
    return coupling, draw_samples(graph, n_samples, labelled=True)


def test_all_who_ask_share_the_runs(counts: list[int]) -> None:
    coupling, samples = setting(300)
    distance = Distance(coupling, samples)
    before = distance.reference
    (same,) = distance.errors(before)
    baseline = examine(before, samples, apart=False)
    assert counts == [128, 128, 44]
    assert same.error == 0
    assert baseline.accuracy == before.accuracy() == accuracy(coupling.graph, samples)
    logits = Session(coupling.graph).run(samples.feed(slice(0, 300)))["y"]
    assert samples.labels is not None
    assert before.accuracy() == np.mean(logits.argmax(1) == samples.labels)


def test_no_session_stays_that_nobody_needs(monkeypatch: pytest.MonkeyPatch) -> None:
    alive = weakref.WeakSet[Session]()
    init = Session.__init__

    def counted(session: Session, *args: Any, **options: Any) -> None:
        alive.add(session)
        init(session, *args, **options)

    monkeypatch.setattr(Session, "__init__", counted)
    coupling, samples = setting(300)
    distance, after = Distance(coupling, samples), Outputs(coupling.graph, samples)
    assert len(alive) == 0
    for _ in after.runs():
        assert len(alive) == 1
    distance.errors(after)
    assert len(alive) == 0


def test_what_there_is_no_room_for_is_run_again(
    counts: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_ROOM", 4 * 4 * 128)
    coupling, samples = setting(300)
    given = Outputs(coupling.graph, samples)
    first, second = ([found["y"] for _, found in given.runs()] for _ in range(2))
    assert counts == [128, 128, 44, 128, 44]
    assert all(map(np.array_equal, first, second))
    assert len(np.concatenate(first)) == 300
