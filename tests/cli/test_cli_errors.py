"""Bad input: one clear sentence, an exit code that is not 0, and a target file left as it was."""

from __future__ import annotations

import errno
import json
import os
import re
import resource
import signal
import subprocess
import sys
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
import pytest
from helpers import build, public_model
from onnx import numpy_helper
from small import (
    CHAIN,
    NORMED,
    OLD,
    OPEN,
    TWO_INPUTS,
    UNKNOWN,
    archive,
    assert_refused,
    classes,
    half_plan,
    images,
    invoke,
    saved,
    written_into,
)

import obc_onnx.run.api
import obc_onnx.surgery.cut
from obc_onnx.errors import ModelError

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    Refuse = Callable[..., None]

_INTERRUPTED = 130
_FAILED_CHECK = 3
_USAGE = 2


@pytest.fixture
def refuse(tmp_path: Path) -> Refuse:
    """Run `compress` onto a file that exists, and raise unless it is refused and left alone."""
    folder = tmp_path / "out"
    folder.mkdir()
    target = folder / "small.onnx"
    target.write_bytes(OLD)

    def run(model: Path, *options: Any, parts: tuple[Any, ...], code: int = 1) -> None:
        result = invoke("compress", model, "-o", target, "--force", *options)
        assert_refused(result, *parts, code=code)
        assert written_into(folder) == {target.name: OLD}

    return run


def test_a_model_file_that_is_missing_is_named(tmp_path: Path, refuse: Refuse) -> None:
    refuse(tmp_path / "none.onnx", parts=("none.onnx", "does not exist"))


@pytest.mark.parametrize("content", [b"", b"no protobuf at all", b"\x08\x0a" + bytes(99)])
def test_a_file_that_is_no_protobuf_is_refused(
    content: bytes, tmp_path: Path, refuse: Refuse
) -> None:
    path = tmp_path / "text.onnx"
    path.write_bytes(content)
    refuse(path, parts=("text.onnx",))


def test_a_model_that_was_cut_off_is_refused(tmp_path: Path, refuse: Refuse) -> None:
    path = saved(tmp_path)
    path.write_bytes(path.read_bytes()[:-100])
    refuse(path, parts=("model.onnx", "cannot be read as an ONNX model"))


def test_a_model_that_fails_the_checker_is_refused(tmp_path: Path, refuse: Refuse) -> None:
    model = build(CHAIN)
    model.graph.node[2].input[1] = "nowhere"
    onnx.save(model, tmp_path / "broken.onnx")
    refuse(tmp_path / "broken.onnx", parts=("broken.onnx", "fails the ONNX checker", "nowhere"))


def test_what_gives_a_value_of_unknown_shape_is_named(tmp_path: Path, refuse: Refuse) -> None:
    model = build(CHAIN)
    model.graph.node[1].op_type, model.graph.node[1].domain = "Magic", "my.domain"
    model.opset_import.add(domain="my.domain", version=1)
    onnx.save(model, tmp_path / "custom.onnx")
    parts = ("value 'q', which Magic 'q' gives, declares no shape", "--input-shape q:1x3x224x224")
    refuse(tmp_path / "custom.onnx", parts=parts)


def test_a_library_that_is_none_is_refused(tmp_path: Path, refuse: Refuse) -> None:
    path = saved(tmp_path, CHAIN)
    (tmp_path / "ops.so").write_text("nothing")
    args = ("--custom-op-library", tmp_path / "ops.so")
    refuse(path, *args, parts=("cannot load", "ops.so", "library of operators"), code=2)


def test_a_model_that_nothing_can_be_saved_in_is_refused(tmp_path: Path, refuse: Refuse) -> None:
    path = saved(tmp_path, "net (float[N,3] x) => (float[N,3] y) { y = Relu(x) }")
    refuse(path, parts=("no MACs",))


@pytest.mark.parametrize(
    ("shape", "parts"),
    [
        ("image:1x3x8x8", ("'image'", "x")),
        ("x:1x3x8", ("'x'", "1x3x8 ", "Nx3x8x8")),
        ("x:1x4x8x8", ("'x'", "1x4x8x8", "Nx3x8x8")),
        ("x:0x3x8x8", ("'x'", "0x3x8x8")),
        (f"x:{10**20}x3x8x8", ("'x'", 10**20)),
    ],
    ids=["name", "rank", "size", "zero", "overflow"],
)
def test_an_input_shape_that_does_not_fit_is_refused(
    shape: str, parts: tuple[Any, ...], tmp_path: Path, refuse: Refuse
) -> None:
    refuse(saved(tmp_path), "--input-shape", shape, parts=parts)
    assert_refused(invoke("inspect", saved(tmp_path), "--input-shape", shape), *parts)


@pytest.mark.parametrize("shape", ["x", "x:", ":1x3", "x:1x", "x:1x-3", "x:axb", "x:1,3"])
def test_an_input_shape_that_is_malformed_is_a_usage_error(
    shape: str, tmp_path: Path, refuse: Refuse
) -> None:
    refuse(saved(tmp_path), "--input-shape", shape, parts=(f"'{shape}'", "NAME:"), code=_USAGE)


def test_a_dynamic_size_that_is_not_given_says_how_to_give_it(
    tmp_path: Path, refuse: Refuse
) -> None:
    parts = ("Nx3xHxW", "axis 2 is dynamic", "--input-shape x:1x3x224x224")
    refuse(saved(tmp_path, OPEN), parts=parts)
    sequence = OPEN.replace("float[N,3,H,W]", "int64[N,L]").replace("Conv(x,", "Conv(z,")
    sequence = sequence.replace("{ p =", "{ z = Cast<to=1>(x) p =")
    parts = ("NxL", "axis 1 is dynamic", "--input-shape x:1x128")
    refuse(saved(tmp_path, sequence), parts=parts)


def test_the_size_that_is_named_is_one_that_a_published_detector_runs_at() -> None:
    model = public_model("rapidocr-onnxruntime/ch_PP-OCRv4_det_infer.onnx")
    refused = invoke("inspect", model)
    (option,) = re.findall(r"--input-shape \S+", refused.stderr)
    assert invoke("inspect", model, *option.split()).exit_code == 0


def test_a_shape_that_the_network_is_too_large_for_gives_one_sentence(
    tmp_path: Path, refuse: Refuse, capfd: pytest.CaptureFixture[str]
) -> None:
    refuse(saved(tmp_path, OPEN), "--input-shape", "x:1x3x2x2", parts=("ONNX Runtime", "{2,2}"))
    assert capfd.readouterr().err == "", "ONNX Runtime itself prints nothing"


def test_a_shape_that_does_not_fit_into_memory_gives_one_sentence(
    tmp_path: Path, refuse: Refuse
) -> None:
    shape = f"x:1x3x{2**22}x{2**22}"  # beyond any memory
    refuse(
        saved(tmp_path, OPEN),
        "--input-shape",
        shape,
        parts=("value 'x'", "more than", "smaller sizes of inputs"),
    )


@pytest.mark.parametrize("target", ["0", "-0.5", "1.5", "nan"])
def test_a_target_that_is_no_share_is_refused(target: str, tmp_path: Path, refuse: Refuse) -> None:
    refuse(saved(tmp_path), "--target-macs", target, parts=("target MACs", f"found {target}"))


def test_a_target_out_of_reach_says_how_far_it_goes_and_what_holds_it(
    tmp_path: Path, refuse: Refuse
) -> None:
    holders = ("Conv 'p'", "graph input 'x'", "graph output 'y'")
    refuse(saved(tmp_path), "--target-macs", "0.001", parts=("0.001", "2 groups", *holders))
    narrowed = ("--target-macs", "0.1", "--exclude", "a")
    refuse(saved(tmp_path), *narrowed, parts=("0.1 of", "1 groups", "1 more groups are excluded"))


def test_an_exclude_pattern_that_matches_nothing_is_named(tmp_path: Path, refuse: Refuse) -> None:
    refuse(saved(tmp_path), "--exclude", "stem.*", parts=("'stem.*'", "no node"))


def test_options_that_need_data_say_so(tmp_path: Path, refuse: Refuse) -> None:
    model = saved(tmp_path)
    refuse(model, "--criterion", "jacobian", parts=("'jacobian'", "--data", "l2"))
    refuse(model, "--epochs", "1", parts=("fine-tuning", "--data"))
    refuse(model, "--eval-data", "e.npz", parts=("--data",))


def test_a_criterion_that_is_not_known_lists_those_that_are(tmp_path: Path, refuse: Refuse) -> None:
    parts = ("'guess'", "jacobian", "l2")
    refuse(saved(tmp_path), "--criterion", "guess", parts=parts, code=_USAGE)


@pytest.mark.parametrize(
    ("option", "value"),
    [("--seed", "-1"), ("--steps", "0"), ("--round-to", "0"), ("--holdout", "1"), ("--lr", "0")],
)
def test_a_number_out_of_range_is_a_usage_error(
    option: str, value: str, tmp_path: Path, refuse: Refuse
) -> None:
    refuse(saved(tmp_path), option, value, parts=(option, value), code=_USAGE)


def test_a_device_that_torch_does_not_have_is_named(tmp_path: Path, refuse: Refuse) -> None:
    data = archive(tmp_path, x=images(), labels=classes())
    refuse(saved(tmp_path), "--data", data, "--device", "tpu", parts=("'tpu'",))


def test_an_output_folder_that_is_missing_is_named_before_the_work(tmp_path: Path) -> None:
    model = saved(tmp_path)
    for place in (("-o", tmp_path / "no" / "s.onnx"), ("-o", tmp_path / "s.onnx", "--plan-out")):
        extra = [tmp_path / "no" / "plan.json"] if "--plan-out" in place else []
        result = invoke("compress", model, *place, *extra)
        assert_refused(result, tmp_path / "no", "does not exist")
        assert list(written_into(tmp_path)) == ["model.onnx"]


def test_an_output_that_is_a_folder_a_device_or_the_plan_is_refused(tmp_path: Path) -> None:
    model = saved(tmp_path)
    assert_refused(invoke("compress", model, "-o", tmp_path), tmp_path, "is a folder")
    os.mkfifo(tmp_path / "pipe")
    assert_refused(invoke("compress", model, "-o", tmp_path / "pipe"), "not a regular file")
    same = tmp_path / "same"
    assert_refused(
        invoke("compress", model, "-o", same, "--plan-out", same), "is named twice", same
    )


def test_a_full_disk_leaves_the_target_as_it_was(
    tmp_path: Path, refuse: Refuse, monkeypatch: pytest.MonkeyPatch
) -> None:
    def save(_model: onnx.ModelProto, path: Path, **_options: Any) -> None:
        path.write_bytes(b"half a model")
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    model = saved(tmp_path)
    monkeypatch.setattr(onnx, "save", save)
    refuse(model, parts=("small.onnx", "No space left on device"))


def test_a_write_that_the_system_cuts_short_leaves_the_target_as_it_was(
    tmp_path: Path, refuse: Refuse
) -> None:
    model = saved(tmp_path)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1024, limits[1]))
    try:
        refuse(model, parts=("small.onnx", os.strerror(errno.EFBIG)))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)


TRAIN = """
import logging, signal, sys
from obc_onnx.cli.main import cli
signal.signal(signal.SIGINT, signal.default_int_handler)
logging.basicConfig(stream=sys.stdout, level=logging.INFO)
cli(sys.argv[1:], prog_name="obc-onnx")
"""


def test_ctrl_c_during_fine_tuning_says_so_and_leaves_the_target_as_it_was(tmp_path: Path) -> None:
    folder = tmp_path / "out"
    folder.mkdir()
    (folder / "small.onnx").write_bytes(OLD)
    data = archive(tmp_path, x=images(64), labels=classes(64))
    options = ["-o", folder / "small.onnx", "--force", "--data", data, "--epochs", "100000"]
    command = [sys.executable, "-c", TRAIN, "compress", saved(tmp_path), *options]
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        assert any("epoch 1:" in line for line in process.stdout), "training never began"
        process.send_signal(signal.SIGINT)
        _, stderr = process.communicate(timeout=60)
    assert process.returncode == _INTERRUPTED
    assert stderr == "Error: interrupted; no result was written\n"
    assert written_into(folder) == {"small.onnx": OLD}


def test_ctrl_c_while_writing_leaves_no_temporary_file(
    tmp_path: Path, refuse: Refuse, monkeypatch: pytest.MonkeyPatch
) -> None:
    def save(_model: onnx.ModelProto, path: Path, **_options: Any) -> None:
        path.write_bytes(b"half a model")
        raise KeyboardInterrupt

    model = saved(tmp_path)
    monkeypatch.setattr(onnx, "save", save)
    refuse(model, parts=("interrupted",), code=_INTERRUPTED)


def test_a_failed_check_names_it_and_leaves_the_target_as_it_was(
    tmp_path: Path, refuse: Refuse, monkeypatch: pytest.MonkeyPatch
) -> None:
    cuts = []

    def breaking(coupling: Any, keep: Any) -> Any:
        cuts.append(pruned := true_remove_units(coupling, keep))
        if len(cuts) == 1:
            return pruned  # what is compared with the masked original
        return pruned.edit({"fc_bias": np.zeros(5, np.float32)})

    true_remove_units = obc_onnx.surgery.cut.remove_units
    monkeypatch.setattr(obc_onnx.surgery.cut, "remove_units", breaking)
    parts = ("initializers as planned", "'fc_bias' has shape (5,), planned (4,)")
    refuse(saved(tmp_path), parts=parts, code=_FAILED_CHECK)


def test_a_bug_of_ours_is_no_error_of_the_user(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(obc_onnx.run.api, "compress", lambda *_a, **_k: 1 // 0)
    with pytest.raises(ZeroDivisionError):
        invoke("compress", saved(tmp_path), "-o", tmp_path / "small.onnx")


def test_a_message_of_several_lines_becomes_one_sentence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_args: Any, **_options: Any) -> None:
        raise ModelError("ONNX Runtime says:\n  this\n\nand that\n")

    monkeypatch.setattr(obc_onnx.run.api, "compress", fail)
    result = invoke("compress", saved(tmp_path), "-o", tmp_path / "small.onnx")
    assert result.stderr == "Error: ONNX Runtime says: this and that\n"


def test_a_model_with_an_unknown_operator_cannot_be_scored_with_data(
    tmp_path: Path, refuse: Refuse
) -> None:
    data = archive(tmp_path, x=images())
    refuse(saved(tmp_path, UNKNOWN), "--data", data, parts=("SampleOp 'q'", "--criterion l2"))


def test_verify_refuses_a_plan_for_another_model(tmp_path: Path) -> None:
    plan = tmp_path / "plan.json"
    plan.write_text(half_plan().to_json())
    other = saved(tmp_path, NORMED)
    result = invoke("verify", other, other, "--plan", plan)
    assert_refused(result, half_plan().model_sha256[:12], "model.onnx")


def test_verify_refuses_a_plan_that_cannot_be_read(tmp_path: Path) -> None:
    model, plan = saved(tmp_path), tmp_path / "plan.json"
    assert_refused(invoke("verify", model, model, "--plan", plan), plan)
    for content in (b"", b"not json", b"\xff\xfe\x00", b"[" * 100_000):
        plan.write_bytes(content)
        assert_refused(invoke("verify", model, model, "--plan", plan), plan, "JSON")
    for other in ([], {}, {"format": 1}, 5):
        plan.write_text(json.dumps(other))
        assert_refused(invoke("verify", model, model, "--plan", plan), plan, "format 3")


def test_labels_for_a_model_that_gives_no_classes_are_refused(
    tmp_path: Path, refuse: Refuse
) -> None:
    two = {"left": images(), "right": images()[:, :2], "labels": classes()}
    parts = ("'y'", "[batch, classes]", "'labels'")
    refuse(saved(tmp_path, TWO_INPUTS), "--data", archive(tmp_path, **two), parts=parts)


def test_weights_of_sizes_that_contradict_each_other_are_refused(
    tmp_path: Path, refuse: Refuse
) -> None:
    model = build(CHAIN)
    weight = next(tensor for tensor in model.graph.initializer if tensor.name == "fc")
    weight.CopyFrom(numpy_helper.from_array(np.zeros((4, 19), np.float32), "fc"))
    onnx.save(model, tmp_path / "odd.onnx")
    refuse(tmp_path / "odd.onnx", parts=("shape inference fails", "x"))
