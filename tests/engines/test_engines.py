"""Engines: what they tell of runs and nodes is what runs take, and what fails is one sentence."""

from __future__ import annotations

import importlib.util
import json
import shlex
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import onnx
import pytest
from helpers import build
from small import CHAIN, STATIC

from obc_onnx.engines.command import last_number, number_at
from obc_onnx.engines.engine import Layer, Loaded
from obc_onnx.engines.naming import Naming
from obc_onnx.engines.onnx_runtime import kernel_times
from obc_onnx.engines.options import USES, EngineOptions
from obc_onnx.engines.table import ENGINES, make_engine
from obc_onnx.engines.trtexec import layer_nodes
from obc_onnx.errors import EngineError, InstallationError, RequestError

if TYPE_CHECKING:
    from typing import Any

STAND_IN = Path(__file__).parent / "stand_in.py"
PYTHON = shlex.quote(sys.executable)
HEAVY = (
    "net (float[N,3,32,32] x) => (float[N,8,32,32] y)"
    "<float[8,3,1,1] a, float[64,8,3,3] b, float[64,64,3,3] c, float[8,64,1,1] d>"
    "{ p = Conv(x, a) q = Relu(p) r = Conv<pads=[1,1,1,1]>(q, b) s = Relu(r)"
    "  t = Conv<pads=[1,1,1,1]>(s, c) u = Relu(t) y = Conv(u, d) }"
)
"""Of its 43 M MACs per sample, 38 are in the convolution that gives `t`."""


def feed_of(size: int = 8, batch: int = 2) -> dict[str, Any]:
    drawn = np.random.default_rng(0).standard_normal((batch, 3, size, size))
    return {"x": drawn.astype(np.float32)}


def file_of(folder: Path, text: str = CHAIN) -> Path:
    """Write a model whose nodes are called like their outputs."""
    model = build(text)
    for node in model.graph.node:
        node.name = node.output[0]
    onnx.save(model, folder / "model.onnx")
    return folder / "model.onnx"


def load(folder: Path, feed: dict[str, Any], text: str = CHAIN, **asked: Any) -> Loaded:
    options = EngineOptions(**asked)
    work = folder / "work"
    work.mkdir()
    return make_engine(options).load(file_of(folder, text), feed, work)


def trtexec(folder: Path, text: str = CHAIN, more: str = "", batch: int = 2) -> Loaded:
    command = f"{PYTHON} {shlex.quote(str(STAND_IN))} {more}"
    return load(folder, feed_of(batch=batch), text, engine="trtexec", command=command)


def test_the_two_tables_name_the_same_engines() -> None:
    assert ENGINES.keys() == USES.keys()


def test_runs_are_timed_as_a_clock_beside_them_does(tmp_path: Path) -> None:
    loaded = load(tmp_path, feed_of(32), HEAVY, threads=1)
    loaded.warm_up()
    start = time.perf_counter()
    told = sum(loaded.turn_seconds() for _ in range(20))
    assert told == pytest.approx(time.perf_counter() - start, rel=0.05)


@pytest.mark.parametrize("optimization", ["none", "all"])
def test_onnx_runtime_tells_the_node_that_costs_most(tmp_path: Path, optimization: str) -> None:
    """The oracle is the count of MACs: one convolution has 38 of 43 million."""
    loaded = load(tmp_path, feed_of(32), HEAVY, threads=1, optimization=optimization)
    loaded.warm_up()
    layers = loaded.layers()
    assert layers is not None
    slowest = max(layers, key=lambda layer: layer.ms)
    assert "t" in slowest.nodes
    whole = np.median([1e3 * loaded.turn_seconds() for _ in range(20)])
    assert 0.4 * whole < sum(layer.ms for layer in layers) < 2.5 * whole
    assert sorted(node for layer in layers for node in layer.nodes) == sorted("pqrstuy")
    assert not list((tmp_path / "work").iterdir()), "the profile is read and gone"


def test_kernels_are_summed_within_runs_and_the_first_ones_left_out() -> None:
    events = []
    for number, dur in enumerate([900, 10, 30, 20]):
        at = 10_000 * number
        events.append({"cat": "Session", "name": "model_run", "ts": at, "dur": 5000})
        for shift in (10, 2000):
            kernel = {"cat": "Node", "name": "a_kernel_time", "ts": at + shift, "dur": dur}
            events.append(kernel)
        events.append({"cat": "Node", "name": "a_fence_before", "ts": at + 20, "dur": 77})
    assert kernel_times(events, warm=1) == {"a": 0.04}


def test_a_provider_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(EngineError, match=r"no 'TpuExecutionProvider' here.*CPUExecution"):
        load(tmp_path, feed_of(), provider="TpuExecutionProvider")


def test_what_onnx_runtime_does_not_run_is_an_engine_error(tmp_path: Path) -> None:
    with pytest.raises(EngineError, match="ONNX Runtime cannot run the model"):
        load(tmp_path, {"x": np.zeros((1, 5, 8, 8), np.float32)}).turn_seconds()


def test_nodes_that_no_layer_names_join_the_layer_that_has_them(tmp_path: Path) -> None:
    naming = Naming(file_of(tmp_path))
    # p and q were fused and go by the name of q; r's name was kept, and s was fused into it
    layers = naming.layers([(["q"], 1.0), (["r"], 2.0), (["reorder"], 0.5), (["t", "none"], 0.1)])
    assert layers == [
        Layer(("p", "q"), 1.0),
        Layer(("r",), 2.0),
        Layer((), 0.5),
        Layer(("s", "t", "u", "y"), 0.1),
    ]


# --- OpenVINO ---


def test_openvino_names_its_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "openvino", None)
    with pytest.raises(InstallationError, match=r"pip install 'obc-onnx\[openvino\]'"):
        make_engine(EngineOptions(engine="openvino"))


needs_openvino = pytest.mark.skipif(
    importlib.util.find_spec("openvino") is None, reason="OpenVINO is not installed"
)


@needs_openvino
def test_openvino_tells_the_node_that_costs_most(tmp_path: Path) -> None:
    loaded = load(tmp_path, feed_of(32), HEAVY, engine="openvino", threads=1)
    loaded.warm_up()
    layers = loaded.layers()
    assert layers is not None
    assert "t" in max(layers, key=lambda layer: layer.ms).nodes
    assert loaded.turn_seconds() > 0
    assert loaded.device


@needs_openvino
def test_openvino_says_which_device_it_has_not(tmp_path: Path) -> None:
    with pytest.raises(EngineError, match="OpenVINO cannot load the model for NONE"):
        load(tmp_path, feed_of(), engine="openvino", device="NONE")


# --- trtexec ---


def test_trtexec_times_runs_and_layers(tmp_path: Path) -> None:
    loaded = trtexec(tmp_path)
    assert (loaded.version, loaded.device) == ("10.13.0", "NVIDIA Stand-In")
    path = tmp_path / "work" / "times.json"
    told = loaded.turn_seconds()
    rows = json.loads(path.read_text())
    assert told == pytest.approx(np.median([row["computeMs"] for row in rows]) / 1e3)
    layers = loaded.layers()
    assert layers is not None
    assert [layer.nodes for layer in layers] == [("p", "q"), ("r", "s"), ("t",), ("u",), ("y",)]


def test_trtexec_gives_shapes_to_open_models_alone(tmp_path: Path) -> None:
    """The stand-in refuses a static model with shapes, as trtexec does, and an open one without."""
    assert trtexec(tmp_path, STATIC, batch=4).turn_seconds() > 0


def test_arguments_of_the_user_come_first(tmp_path: Path) -> None:
    assert trtexec(tmp_path, more="--fp16").turn_seconds() > 0
    with pytest.raises(EngineError, match=r"cannot build .*Unknown option: --strange$"):
        trtexec(tmp_path / "work", more="--strange")


@pytest.mark.parametrize(
    ("fault", "version", "said"),
    [
        (
            "build",
            "",
            r"cannot build the engine of 'model.onnx' \(exit code 1\): Error\[4\]: .*Str",
        ),
        ("killed", "", "cannot build the engine of 'model.onnx': SIGKILL ended it"),
        ("no banner", "", "does not say that it is trtexec"),
        ("", "8601", r"is of TensorRT 8\.6\.1, and 10 is needed"),
        ("no times", "", r"did not write 'times\.json'"),
        ("torn", "", r"wrote 'times\.json', which is no JSON"),
        ("field", "", "without a number 'computeMs'"),
    ],
)
def test_what_goes_wrong_with_trtexec_is_one_sentence(
    fault: str, version: str, said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("STAND_IN_FAULT", fault)
    if version:
        monkeypatch.setenv("STAND_IN_VERSION", version)
    with pytest.raises(EngineError, match=said) as error:
        trtexec(tmp_path).turn_seconds()
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("fault", "said"), [("no details", "without details"), ("no layers", "without 'Layers'")]
)
def test_layers_without_names_of_nodes_are_refused(
    fault: str, said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("STAND_IN_FAULT", fault)
    with pytest.raises(EngineError, match=said):
        trtexec(tmp_path).layers()


def test_a_time_of_an_earlier_run_is_not_read_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    loaded = trtexec(tmp_path)
    loaded.turn_seconds()
    monkeypatch.setenv("STAND_IN_FAULT", "no times")
    with pytest.raises(EngineError, match="did not write"):
        loaded.turn_seconds()


def test_layers_of_the_compiler_tell_nodes_in_their_metadata() -> None:
    noted = "[ONNX Layer: a]\x1f[ONNX Layer: b]\x1e[ONNX Layer: c]"
    info = {"Layers": [{"Name": "__myl_FcAdd_1", "Metadata": noted}, {"Name": "d + w.bias"}]}
    assert layer_nodes(info) == {"__myl_FcAdd_1": ["a", "b", "c"], "d + w.bias": ["d", "w.bias"]}


# --- programs ---


def program(folder: Path, body: str) -> str:
    path = folder / "bench.py"
    path.write_text(f"import json, sys\n{body}\n")
    return f"{PYTHON} {shlex.quote(str(path))} {{model}} {{shapes}}"


@pytest.mark.parametrize(
    ("body", "answer"),
    [
        ("print('8 runs'); print('median 2.5 ms')", None),
        ("print('warming'); print(json.dumps({'a': [{'ms': '2.5'}]}, indent=1))", "a.0.ms"),
        ("assert sys.argv[1].endswith('.onnx') and sys.argv[2] == 'x:2x3x8x8'; print(2.5)", None),
    ],
)
def test_a_program_tells_milliseconds(tmp_path: Path, body: str, answer: str | None) -> None:
    command = program(tmp_path, body)
    loaded = load(tmp_path, feed_of(), engine="command", command=command, answer=answer)
    loaded.warm_up()
    assert loaded.turn_seconds() == 2.5e-3
    assert loaded.layers() is None


@pytest.mark.parametrize(
    ("body", "answer", "said"),
    [
        ("print('done')", None, "printed no number, but 'done'"),
        ("print('nan 0')", None, "printed 0, which is no time"),
        (
            "sys.exit('no such board')",
            None,
            r"cannot time the model \(exit code 1\): no such board",
        ),
        ("print('2.5')", "ms", "printed no JSON, but '2.5'"),
        ("print(json.dumps({'us': 3}))", "ms", r"no 'ms' of .*there is \['us'\]"),
        ("print(json.dumps({'ms': None}))", "ms", "leads to no number"),
    ],
)
def test_what_goes_wrong_with_a_program_is_one_sentence(
    tmp_path: Path, body: str, answer: str | None, said: str
) -> None:
    command = program(tmp_path, body)
    loaded = load(tmp_path, feed_of(), engine="command", command=command, answer=answer)
    with pytest.raises(EngineError, match=said) as error:
        loaded.turn_seconds()
    assert "\n" not in str(error.value)


def test_a_program_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(EngineError, match=r"'no-such-program' cannot be run \(No such file"):
        load(tmp_path, feed_of(), engine="trtexec", command="no-such-program")


@pytest.mark.parametrize(
    ("text", "number"),
    [("a 1.5e-3", 1.5e-3), ("2.5ms", 2.5), ("v1.2.3\n7 ms", 7.0), ("3, -4", -4.0), ("x86 9", 9.0)],
)
def test_the_last_number(text: str, number: float) -> None:
    assert last_number(text) == number


def test_json_is_found_behind_lines_that_only_begin_like_it() -> None:
    assert number_at('[info] start\n{"ms": 3}', "ms") == 3.0


# --- options ---


@pytest.mark.parametrize(
    ("asked", "said"),
    [
        ({"engine": "tvm"}, "'tvm' is not known: choose from onnxruntime"),
        ({"engine": "openvino", "provider": "x"}, "'openvino' does not look at .*provider"),
        ({"device": "GPU"}, "'onnxruntime' does not look at .*device"),
        ({"threads": 0}, "threads` cannot be 0"),
        ({"optimization": "most"}, "choose from none, basic"),
        ({"provider_options": {"a": "b"}}, "of one provider"),
        ({"engine": "command"}, "runs a program of yours"),
        ({"engine": "command", "command": "bench"}, "with {model}"),
        ({"engine": "trtexec", "command": " "}, "it is a text"),
    ],
)
def test_what_contradicts_itself_is_refused(asked: dict[str, Any], said: str) -> None:
    with pytest.raises(RequestError, match=said):
        EngineOptions(**asked)
