"""What commands say of what they wrote, how little they print, and where a copy goes."""

from __future__ import annotations

import shlex
import time
from typing import TYPE_CHECKING

import pytest
from small import archive, assert_refused, classes, images, invoke, saved

from obc_onnx import progress
from obc_onnx.coupling.analysis import Clock
from obc_onnx.saliency.scores import Scores

if TYPE_CHECKING:
    from pathlib import Path


BYTES = ("--engine-command", "wc -c {model}", "--round-to", "1")
"""A clock that takes as many milliseconds as the file has bytes."""


def commands(folder: Path) -> dict[str, tuple[tuple[object, ...], str]]:
    """Every command that writes, and what its last line says."""
    model, data = saved(folder), archive(folder, x=images(), labels=classes())
    small, plan, scores = folder / "small.onnx", folder / "p.json", folder / "s.npz"
    page, made = folder / "page.html", folder / "made.json"
    assert invoke("plan", model, "-o", made).exit_code == 0
    apply = f"obc-onnx apply {model} --plan {plan} -o small.onnx"
    verify = f"obc-onnx verify {model} {small} --plan {plan}"
    compress = f"obc-onnx compress {model} --scores {scores} -o small.onnx"
    return {
        "plan": (("plan", model, "-o", plan), f"wrote {plan}; next: {apply}"),
        "score": (("score", model, "-o", scores), f"wrote {scores}; next: {compress}"),
        "compress": (
            ("compress", model, "-o", small),
            f"wrote {small}; next: use it in place of {model}",
        ),
        "compress, plan and page": (
            ("compress", model, "-o", small, "--plan-out", plan, "--report", page),
            f"wrote {small}, {plan} and {page}; next: {verify}",
        ),
        "apply": (
            ("apply", model, "-o", small, "--plan", made, "--plan-out", plan),
            f"wrote {small} and {plan}; next: {verify}",
        ),
        "finetune": (
            ("finetune", model, "-o", small, "--plan", made, "--data", data, "--epochs", "1"),
            f"wrote {small}; next: use it in place of {model}",
        ),
        "sensitivity": (
            ("sensitivity", model, "--data", data, "--plot", page),
            f"wrote {page}",
        ),
        "inspect": (("inspect", model, "--report", page), f"wrote {page}"),
        "strip": (
            ("strip", model, "-o", small),
            f"wrote {small}; next: use it in place of {model}",
        ),
        "export-trt": (
            ("export-trt", model, model, "-o", folder / "trt", "--data", data),
            f"wrote {folder / 'trt'}; next: sh {folder / 'trt' / 'build_trt11.sh'}",
        ),
        "profile": (
            ("profile", model, "-o", page, "--designs", "3", "--engine", "command", *BYTES),
            (
                f"wrote {page}; next: obc-onnx plan {model} --costs {page} --target-latency 0.7 "
                "-o plan.json"
            ),
        ),
        "sweep": (
            ("sweep", model, "-o", folder / "out", "--data", data, "--targets", "0.5"),
            (
                f"wrote {folder / 'out'}; next: obc-onnx apply {model} --plan "
                f"{folder / 'out' / 'model-0.5.plan.json'} --data {data} -o small.onnx"
            ),
        ),
        "twin": (
            ("twin", model, "-o", folder / "t.pt2"),
            f"wrote {folder / 't.pt2'}; next: torch.export.load('{folder / 't.pt2'}')",
        ),
    }


NAMES = (
    *("plan", "score", "compress", "compress, plan and page", "apply", "finetune"),
    *("sensitivity", "inspect", "strip", "export-trt", "profile", "sweep", "twin"),
)


@pytest.mark.parametrize("name", NAMES)
def test_the_last_line_says_what_was_written_and_what_comes_next(name: str, tmp_path: Path) -> None:
    command, expected = commands(tmp_path)[name]
    done = invoke(*command)
    assert done.exit_code == 0, done.output
    assert done.stderr.splitlines()[-1] == expected


@pytest.mark.parametrize("name", ["plan", "score", "compress, plan and page", "apply"])
def test_what_comes_next_can_be_run(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    command, _ = commands(tmp_path)[name]
    said = invoke(*command).stderr.splitlines()[-1].partition("next: obc-onnx ")[2]
    done = invoke(*shlex.split(said))
    assert done.exit_code == 0, done.output


def test_what_writes_nothing_says_nothing_of_it(tmp_path: Path) -> None:
    assert "wrote" not in invoke("inspect", saved(tmp_path)).output


@pytest.mark.parametrize("option", ["--json", "--print-code"])
def test_what_programs_read_has_no_last_line_for_people(option: str, tmp_path: Path) -> None:
    name = "compress" if option == "--json" else "twin"
    command, _ = commands(tmp_path)[name]
    assert "wrote" not in invoke(*command, option).output


def test_quiet_leaves_the_result_and_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    command, _ = commands(tmp_path)["compress"]
    monkeypatch.setattr(progress, "_QUIET_SECONDS_UNWATCHED", 0.0)
    assert "verify ...\n" in invoke(*command).stderr
    done = invoke(*command, "--force", "-q")
    assert done.stderr == ""
    assert done.stdout.splitlines()[-1].startswith("doubtful: ")


@pytest.mark.parametrize("silent", [False, True])
def test_what_is_silenced_shows_no_progress(
    silent: bool, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(progress, "_QUIET_SECONDS_UNWATCHED", 0.01)
    monkeypatch.setattr(progress, "_SECONDS_BETWEEN_LINES", 0.01)
    with progress.silenced(silent=silent), Clock()("measuring"):
        for _ in progress.track(range(5), "counting"):
            time.sleep(0.03)
    told = capsys.readouterr().err
    assert ("counting" in told, "measuring ..." in told) == (not silent, not silent)


def test_a_log_has_what_is_printed_of_one_run_after_the_other(tmp_path: Path) -> None:
    model, log = saved(tmp_path), tmp_path / "log.txt"
    first = invoke("inspect", model, "--log-file", log)
    second = invoke("compress", model, "-o", tmp_path / "small.onnx", "--log-file", log)
    assert log.read_text() == first.stdout + second.output
    refused = invoke("compress", model, "-o", tmp_path / "small.onnx", "--log-file", log)
    assert log.read_text() == first.stdout + second.output + refused.stderr


@pytest.mark.parametrize("named", ["model.onnx", "small.onnx", "data.npz"])
def test_a_log_is_never_one_of_the_other_files(named: str, tmp_path: Path) -> None:
    model, data = saved(tmp_path), archive(tmp_path, x=images())
    before = model.read_bytes(), data.read_bytes()
    command = ("compress", model, "-o", tmp_path / "small.onnx", "--data", data)
    refused = invoke(*command, "--log-file", tmp_path / named)
    assert_refused(refused, f"the log '{tmp_path / named}' is", "name another file")
    assert (model.read_bytes(), data.read_bytes()) == before


def test_a_log_that_cannot_be_written_is_told_before_any_work(tmp_path: Path) -> None:
    refused = invoke("inspect", saved(tmp_path), "--log-file", tmp_path / "none" / "log.txt")
    assert_refused(refused, "none' does not exist")


@pytest.mark.parametrize(
    "samples", [("--samples", "7"), ("--samples=7",), ("--score-samples", "7")]
)
def test_options_of_scores_have_one_name_and_the_former_one_is_understood(
    samples: tuple[str, ...], tmp_path: Path
) -> None:
    data = archive(tmp_path, x=images(), labels=classes())
    scores = tmp_path / "s.npz"
    done = invoke("score", saved(tmp_path), "-o", scores, "--data", data, *samples)
    assert done.exit_code == 0, done.output
    assert Scores.load(scores).scoring["samples"] == 7
    assert "  --samples" not in invoke("score", "--help-all").stdout


@pytest.mark.parametrize("name", ["compress", "strip", "sweep"])
def test_tables_fit_80_columns_where_no_terminal_says_how_wide_it_is(
    name: str, tmp_path: Path
) -> None:
    model, data = saved(tmp_path), archive(tmp_path, x=images(), labels=classes())
    options = {
        "compress": ("--data", data, "--target-macs", "0.6", "--recover-minutes", "0"),
        "strip": (),
        "sweep": (
            "--data",
            data,
            "--targets",
            "0.8,0.6",
            "--pick",
            "0.6",
            "--recover-minutes",
            "0",
        ),
    }[name]
    done = invoke(name, model, "-o", tmp_path / "out", *options)
    assert done.exit_code == 0, done.stderr
    tables = [line for line in done.stdout.splitlines() if line[0:1] in {"┃", "│", "└", "┏"}]
    assert max(map(len, tables)) <= 80
