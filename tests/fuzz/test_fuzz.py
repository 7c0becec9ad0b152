"""Damaged models and files of every kind end in a result or in a sentence."""

from __future__ import annotations

from typing import TYPE_CHECKING

from fuzz import run
from fuzz.run import FAULT, KINDS, Worker, cases, fuzz

if TYPE_CHECKING:
    import pytest

SECONDS = 45.0
MOST = 6_000
"""Cases: those that a faster machine would get to beside these are for `make fuzz`."""


ENDLESS = """
from fuzz import worker
worker.CPU_SECONDS = 0.2
def attempt(*_):
    while True: pass
worker.attempt = attempt
worker.main()
"""


def test_nothing_that_arrives_crashes_hangs_or_fills_the_memory() -> None:
    least = len(list(run.FAULTS.iterdir())) + 2 * len(KINDS)  # a busy machine does no less
    counts, faults = fuzz(SECONDS, first=0, most=MOST, least=least)
    assert not faults, "\n".join(faults)
    assert {kind for kind, _ in counts} == set(KINDS)
    models = {found: count for (kind, found), count in counts.items() if kind == "model"}
    assert models["refused"] > 0
    assert models["inspected"] > 0, "every model was refused: the edits are too coarse"


def test_equal_numbers_give_equal_cases() -> None:
    first, again = Worker(), Worker()
    try:
        for kind, case in (("model", "3"), ("plan", "9"), ("tar", "4")):
            assert first.attempt(kind, case)["reached"] == again.attempt(kind, case)["reached"]
    finally:
        first.end()
        again.end()


def test_a_crash_and_a_hang_are_faults(monkeypatch: pytest.MonkeyPatch) -> None:
    for code, said in (
        ("print('ready', flush=True); input(); import os; os.abort()", "ended the process with -6"),
        ("print('ready', flush=True); input(); input()", "hangs"),
        (ENDLESS, "ended the process with -27"),
    ):
        monkeypatch.setattr(run, "COMMAND", ("-c", code))
        monkeypatch.setattr(run, "HANGS_AFTER", 20.0 if code == ENDLESS else 3.0)
        found = Worker().attempt("model", "1")
        assert found["reached"] == FAULT
        assert said in found["said"]


def test_what_failed_once_comes_first() -> None:
    known = sorted(run.FAULTS.iterdir())
    assert known
    assert [case for (_, case), _ in zip(cases(0), known, strict=False)] == list(map(str, known))
