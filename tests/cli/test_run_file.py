"""Options of a run that a file says: `--config` outside of its tables."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest
from small import archive, assert_done, assert_refused, images, invoke, saved

if TYPE_CHECKING:
    from pathlib import Path


def written(folder: Path, text: str) -> Path:
    path = folder / "run.toml"
    path.write_text(text, encoding="utf-8")
    return path


def left_of(plan: dict[str, Any], name: str) -> int:
    """Return how many units of a group stay."""
    return int(plan["groups"][name]["keep"])


def test_a_file_says_what_the_command_line_would(tmp_path: Path) -> None:
    model, data = saved(tmp_path), archive(tmp_path, x=images(20))
    said, given = tmp_path / "said.onnx", tmp_path / "given.onnx"
    config = written(
        tmp_path,
        f'''
        data = "{data.as_posix()}"
        output = "{said.as_posix()}"
        target_macs = 0.6
        recover-minutes = 0
        latency = false
        json = true
        exclude = ["a:0"]
        ''',
    )
    by_file = invoke("compress", model, "--config", config)
    assert_done(by_file)
    options = ("--target-macs", "0.6", "--recover-minutes", "0", "--no-latency", "--json")
    assert_done(
        invoke("compress", model, "-o", given, "--data", data, *options, "--exclude", "a:0")
    )
    assert said.read_bytes() == given.read_bytes()
    report = json.loads(by_file.stdout)
    assert report["latency_ms"]["before"] is None


def test_the_command_line_goes_before_the_file(tmp_path: Path) -> None:
    model, plan = saved(tmp_path), tmp_path / "plan.json"
    config = written(tmp_path, 'target-macs = 0.1\nexclude = ["a:0"]\n')
    given = ("--target-macs=0.9", "--exclude", "b:0")
    assert_done(invoke("plan", model, "-o", plan, "--config", config, *given))
    found = json.loads(plan.read_text(encoding="utf-8"))
    assert found["macs"][1] > 0.5 * found["macs"][0]
    assert [left_of(found, name) for name in ("a:0", "b:0")] == [8, 20]


def test_limits_stand_in_tables_beside_options(tmp_path: Path) -> None:
    model, plan = saved(tmp_path), tmp_path / "plan.json"
    config = written(tmp_path, 'target-macs = 0.6\n["b:0"]\nkeep = true\n')
    assert_done(invoke("plan", model, "-o", plan, "--config", config))
    found = json.loads(plan.read_text(encoding="utf-8"))
    assert [left_of(found, name) for name in ("a:0", "b:0")] == [4, 20]


@pytest.mark.parametrize(
    ("text", "part"),
    [
        ("target-mac = 0.5", "`compress` has no such one, but 'target-macs'"),
        ("config = 'other.toml'", "'config' outside of any table"),
        ("force = 1", "'force': it takes true or false, found 1"),
        ("epochs = true", "'epochs': it takes a value, found True"),
        ("target-macs = 0.5\ntarget_macs = 0.6", "'target_macs' twice"),
        ("data = ['a.npz', 'b.npz']", "'data': it takes 1 value(s), found 2"),
        ("data = 2026-01-01", "'data': it takes text and numbers, found 2026-01-01"),
        ("image-size = [224]", "'image-size': it takes 2 value(s), found 1"),
        ("epochs = 'x'", "'--epochs': 'x' is not a valid integer range, as config"),
        ("target-macs = 'half'", "run.toml', 'target-macs' says"),
    ],
)
def test_what_is_no_option_or_no_value_of_one_is_refused(
    text: str, part: str, tmp_path: Path
) -> None:
    config, out = written(tmp_path, text), tmp_path / "small.onnx"
    found = invoke("compress", saved(tmp_path), "-o", out, "--config", config)
    assert found.exit_code in (1, 2)
    assert part in found.stderr
    assert not out.exists()


def test_help_does_not_wait_for_a_file_that_is_broken(tmp_path: Path) -> None:
    config = written(tmp_path, "[a")
    assert invoke("compress", "--config", config, "--help").exit_code == 0


def test_a_list_stands_for_several_values_of_one_option(tmp_path: Path) -> None:
    config = written(tmp_path, "image-size = [8, 8]\nimage-mean = [0.5, 0.5, 0.5]\n")
    data = archive(tmp_path, x=images(20))
    command = ("plan", saved(tmp_path), "-o", tmp_path / "plan.json", "--data", data)
    pictures = "and no pictures: leave --image-mean, --image-size out"
    assert_refused(invoke(*command, "--config", config), pictures)


def test_a_file_that_is_not_there_is_named_before_what_is_missing(tmp_path: Path) -> None:
    found = invoke("compress", saved(tmp_path), "--config", tmp_path / "none.toml")
    assert_refused(found, "none.toml", "cannot be read")


def test_training_takes_a_file_too(tmp_path: Path) -> None:
    model, plan, data = saved(tmp_path), tmp_path / "plan.json", archive(tmp_path, x=images(40))
    assert_done(invoke("plan", model, "-o", plan, "--target-macs", "0.6"))
    said, given = tmp_path / "said.onnx", tmp_path / "given.onnx"
    config = written(
        tmp_path, f'plan = "{plan.as_posix()}"\nepochs = 1\nbatch-size = 8\nlr = 0.01\n'
    )
    assert_done(invoke("finetune", model, "-o", said, "--data", data, "--config", config))
    options = ("--plan", plan, "--epochs", "1", "--batch-size", "8", "--lr", "0.01")
    assert_done(invoke("finetune", model, "-o", given, "--data", data, *options))
    assert said.read_bytes() == given.read_bytes()


def test_limits_are_refused_where_no_plan_is_made(tmp_path: Path) -> None:
    config, out = written(tmp_path, '["b:0"]\nkeep = true\n'), tmp_path / "scores.npz"
    found = invoke("score", saved(tmp_path), "-o", out, "--config", config)
    assert_refused(found, "has a table 'b:0', which limits widths, but `score` makes no plan")


def test_a_wrong_value_of_the_command_line_is_not_told_as_the_files(tmp_path: Path) -> None:
    config, out = written(tmp_path, "epochs = 1\n"), tmp_path / "small.onnx"
    found = invoke("compress", saved(tmp_path), "-o", out, "--config", config, "--epochs", "x")
    assert found.exit_code == 2
    assert "run.toml" not in found.stderr
