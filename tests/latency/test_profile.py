"""Profiles: what is measured is what is written, and each damage of a file is one sentence."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from helpers import analyse
from small import CHAIN, NORMED, assert_refused, chain, invoke, saved

from obc_onnx.engines.engine import Loaded
from obc_onnx.engines.options import EngineOptions
from obc_onnx.errors import RequestError
from obc_onnx.graph.model import Graph
from obc_onnx.latency.designs import keep_of
from obc_onnx.latency.profile import Profile
from obc_onnx.measuring import latency
from obc_onnx.measuring.latency import Race, race_closely
from obc_onnx.report.profiling import profiling_text
from obc_onnx.run.profiling import profile
from obc_onnx.surgery.cut import remove_units

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

BYTES = "sh -c 'wc -c < {model}'"
"""A program whose milliseconds are the bytes of the file: they are known without a clock."""
BY_BYTES = ("--engine", "command", "--engine-command", BYTES)


def measured(folder: Path, *options: str, text: str = CHAIN) -> Path:
    path = folder / "costs.json"
    command = ("profile", saved(folder, text), "-o", path, "--designs", "5", *BY_BYTES)
    result = invoke(*command, "--round-to", "4", *options)
    assert result.exit_code == 0, result.output
    return path


def test_every_design_is_timed_by_the_engine(tmp_path: Path) -> None:
    """The oracle is the file of each design, cut and written here."""
    found = Profile.load(measured(tmp_path))
    of = analyse(chain()).coupling

    def size(widths: dict[str, int]) -> int:
        remove_units(of, keep_of(of, widths)).save(tmp_path / "cut.onnx")
        return (tmp_path / "cut.onnx").stat().st_size

    assert found.timings[0].widths == {}
    assert len(found.timings) == 6
    for timing in found.timings:
        assert abs(timing.ms - size(timing.widths)) < 60, "but for the names of nodes"
        assert timing.ratio == pytest.approx(timing.ms / found.whole_ms, rel=1e-5)
        assert (timing.spread, timing.turns, timing.layers) == (0, 3, [])
    assert found.engine == EngineOptions("command", command=BYTES)
    assert found.model_sha256 == Graph.load(tmp_path / "model.onnx").sha256
    assert (found.version, found.shapes, found.round_to) == ("", {"x": [1, 3, 8, 8]}, 4)


def test_equal_times_give_equal_bytes_and_files_are_read_as_they_were(tmp_path: Path) -> None:
    first = measured(tmp_path).read_bytes()
    assert measured(tmp_path, "--force").read_bytes() == first
    Profile.load(tmp_path / "costs.json").save(tmp_path / "again.json")
    assert (tmp_path / "again.json").read_bytes() == first
    assert measured(tmp_path, "--force", "--seed", "1").read_bytes() != first


def test_the_command_says_what_was_timed_and_how_well_it_tells_others(tmp_path: Path) -> None:
    command = ("profile", saved(tmp_path), "-o", tmp_path / "c.json", *BY_BYTES, "--batch", "3")
    text = invoke(*command).stdout
    assert f"in command, command {BYTES} on " in text
    assert "x 3x3x8x8" in text
    assert re.search(r"whole: [\d.e+]+ ms; 12 designs in multiples of 8 channels", text)
    errors = re.search(r"off by ([\d.]+) % in the median, ([\d.]+) % at most", text)
    assert errors is not None
    assert float(errors[2]) < 2, "bytes are a sum over weights"


def test_times_that_are_hardly_known_are_a_warning() -> None:
    found = profile(chain(), engine=EngineOptions("command", command=BYTES), designs=3)
    assert "warning" not in profiling_text(found)
    timings = [replace(timing, spread=0.06) for timing in found.profile.timings[:2]]
    shaky = replace(found.profile, timings=[*timings, *found.profile.timings[2:]])
    said = profiling_text(replace(found, profile=shaky)).splitlines()[-1]
    assert said.startswith("warning: 2 of 4 times are known to no better than 5 %")


def test_onnx_runtime_tells_layers_of_the_file(tmp_path: Path) -> None:
    found = profile(chain(), designs=3, round_to=4).profile
    nodes = {node for timing in found.timings for layer in timing.layers for node in layer.nodes}
    assert nodes == set("pqrstuy")
    assert all(timing.layers for timing in found.timings)
    assert Profile.load(_saved(found, tmp_path)) == found


def _saved(found: Profile, folder: Path) -> Path:
    found.save(folder / "p.json")
    return folder / "p.json"


def damaged(change: Callable[[dict[str, Any]], Any]) -> Callable[[Path], None]:
    def write(path: Path) -> None:
        content = json.loads(path.read_text())
        change(content)
        path.write_text(json.dumps(content))

    return write


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (lambda path: path.write_text("{"), "cannot be read as JSON"),
        (lambda path: path.write_text("[" * 100_000), "cannot be read as JSON"),
        (lambda path: path.write_text("[]"), "is not a profile of format 1"),
        (damaged(lambda c: c.update(format=2)), "is not a profile of format 1"),
        (damaged(lambda c: c.pop("seed")), "lacks fields or has unknown ones"),
        (damaged(lambda c: c.update(more=1)), "lacks fields or has unknown ones"),
        (damaged(lambda c: c.update(device=1)), "has a 'device' that is not of a profile"),
        (damaged(lambda c: c.update(round_to=0)), "has a 'round_to'"),
        (damaged(lambda c: c.update(shapes={"x": [-1]})), "has a 'shapes'"),
        (damaged(lambda c: c["engine"].update(engine="tvm")), "no engine that is known: .*'tvm'"),
        (damaged(lambda c: c["engine"].update(more=1)), "no engine that is known"),
        (damaged(lambda c: c["timings"].__delitem__(slice(3, None))), "has a 'timings'"),
        (damaged(lambda c: c["timings"].pop(0)), "has a 'timings'"),
        (damaged(lambda c: c["timings"][1].update(ratio=0)), "has a 'timings'"),
        (damaged(lambda c: c["timings"][1].update(ms=True)), "has a 'timings'"),
        (damaged(lambda c: c["timings"][1].update(spread=float("nan"))), "has a 'timings'"),
        (damaged(lambda c: c["timings"][1]["widths"].update({"a:0": 0})), "has a 'timings'"),
        (damaged(lambda c: c["timings"][1].update(layers=[{"ms": 1}])), "has a 'timings'"),
        (damaged(lambda c: c["timings"][1].pop("turns")), "has a 'timings'"),
    ],
)
def test_a_damaged_file_is_refused(
    damage: Callable[[Path], None], said: str, tmp_path: Path
) -> None:
    path = measured(tmp_path)
    damage(path)
    with pytest.raises(RequestError, match=said) as error:
        Profile.load(path)
    assert str(path) in str(error.value)


def test_a_file_of_another_model_is_refused(tmp_path: Path) -> None:
    found = Profile.load(measured(tmp_path, text=NORMED))
    with pytest.raises(RequestError, match="of a model with sha256"):
        found.check(analyse(chain()).coupling)


@pytest.mark.parametrize(("name", "width"), [("a:0", 12), ("no:0", 3)])
def test_widths_that_the_model_does_not_have_are_refused(
    name: str, width: int, tmp_path: Path
) -> None:
    path = measured(tmp_path)
    damaged(lambda c: c["timings"][1]["widths"].update({name: width}))(path)
    with pytest.raises(RequestError, match=f"cuts group '{name}' to {width} units"):
        Profile.load(path).check(analyse(Graph.load(tmp_path / "model.onnx")).coupling)


def test_refusals_of_the_command(tmp_path: Path) -> None:
    path = measured(tmp_path)
    command = ("profile", tmp_path / "model.onnx", "-o")
    assert_refused(invoke(*command, path), "exists")
    other = tmp_path / "other.json"
    assert_refused(invoke(*command, other, "--engine", "command"), "give --engine-command")
    assert_refused(
        invoke(*command, other, "--engine-device", "GPU"),
        "engine 'onnxruntime' does not look at --engine-device",
    )
    assert_refused(
        invoke(
            *command, other, "--engine", "command", "--engine-command", "sh -c 'exit 3' {model}"
        ),
        "'sh' cannot time the model (exit code 3): it printed nothing",
    )
    assert not other.exists()


def test_the_spread_is_that_of_the_median_of_many_races(rng: np.random.Generator) -> None:
    """The oracle is the deviation of the ratio over 400 races of equal noise."""
    races = [Race(np.ones(45), 0.5 * rng.normal(1.0, 0.04, 45)) for _ in range(400)]
    ratios = [race.ratio for race in races]
    assert np.mean(ratios) == pytest.approx(0.5, rel=0.01)
    told = np.mean([race.spread for race in races])
    assert told == pytest.approx(np.std(ratios) / 0.5, rel=0.2)


class Jumpy(Loaded):
    """A model whose runs take turns at two times, the less the more often it has run."""

    version, device = "", ""

    def __init__(self, noise: float) -> None:
        self.noise, self.runs = noise, 0

    def turn_seconds(self) -> float:
        self.runs += 1
        return 1.0 + self.noise * (-1) ** self.runs


def test_turns_go_on_until_the_ratio_is_known_or_time_is_over(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    quiet, jumpy = (race_closely(Jumpy(0), Jumpy(noise)) for noise in (1e-4, 0.02))
    assert len(quiet.after) == Jumpy.fewest_turns
    assert len(jumpy.after) > Jumpy.fewest_turns
    assert jumpy.spread <= 0.005
    monkeypatch.setattr(latency, "_CLOSE_SECONDS", 0.0)
    assert race_closely(Jumpy(0), Jumpy(0.02)).spread > 0.005
