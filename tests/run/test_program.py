"""The twin on its own: as code, as an exported program, written back."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import onnx
import pytest
import torch
from click.testing import CliRunner
from helpers import build, run_onnx
from small import chain

from obc_onnx.cli.main import cli
from obc_onnx.errors import ModelError, VerificationError
from obc_onnx.graph.model import Graph
from obc_onnx.run.twin_program import TwinProgram
from obc_onnx.twin.tensors import initializer_name

if TYPE_CHECKING:
    from pathlib import Path

EXPORTED = {
    "resize": ('y = Resize<mode="nearest">(x, , s)', {"s": np.array([1, 1, 2, 2], np.float32)}),
    "pad": ('y = Pad<mode="reflect">(x, k)', {"k": [0, 0, 1, 1, 0, 0, 1, 1]}),
}


@pytest.fixture
def model(tmp_path: Path) -> Path:
    path = tmp_path / "model.onnx"
    onnx.save(chain(), path)
    return path


def test_an_exported_program_runs_without_this_package_at_any_batch(
    model: Path, tmp_path: Path
) -> None:
    target = tmp_path / "module.pt2"
    result = CliRunner().invoke(cli, ["twin", str(model), "-o", str(target)])
    assert (result.exit_code, result.stdout) == (0, "")
    assert result.stderr.startswith(f"wrote {target}; next: torch.export.load(")
    module = torch.export.load(target).module()
    graph = Graph.load(model)
    for batch in (1, 2, 5):
        x = np.random.default_rng(batch).standard_normal((batch, 3, 8, 8)).astype(np.float32)
        with torch.no_grad():
            (found,) = module(torch.from_numpy(x))
        (expected,) = run_onnx(graph, {"x": x}).values()
        np.testing.assert_allclose(found.numpy(), expected, rtol=1e-4, atol=1e-5)


def test_the_code_is_printed_and_nothing_else(model: Path) -> None:
    result = CliRunner().invoke(cli, ["twin", str(model), "--print-code"])
    assert result.exit_code == 0
    compile(result.stdout, "twin", "exec")
    assert "def forward(self, input_x):" in result.stdout


def test_without_anything_to_do_it_says_so(model: Path) -> None:
    result = CliRunner().invoke(cli, ["twin", str(model)])
    assert result.exit_code == 1
    assert "--print-code" in result.stderr


def test_operators_that_torch_lacks_are_all_named(tmp_path: Path) -> None:
    text = (
        "net (float[N,4] x) => (float[N,4] y) { s = Cast<to=8>(x) t = StringConcat(s, s)"
        " u = StringConcat(t, s) y = Cast<to=1>(u) }"
    )
    onnx.save(build(text, opset=20), tmp_path / "text.onnx")
    result = CliRunner().invoke(cli, ["twin", str(tmp_path / "text.onnx"), "--print-code"])
    assert result.exit_code == 1
    parts = ("Cast 's'", "ONNX type 8", "StringConcat 't'", "StringConcat 'u'")
    assert all(part in result.stderr for part in parts)


def test_a_twin_that_computes_something_else_is_not_written(model: Path, tmp_path: Path) -> None:
    program = TwinProgram.of(model)
    with torch.no_grad():
        next(iter(program.twin.parameters())).add_(1)
    with pytest.raises(VerificationError, match="twin equals ONNX Runtime"):
        program.save(tmp_path / "module.pt2")
    assert not (tmp_path / "module.pt2").exists()


def test_what_torch_cannot_trace_is_a_model_error(
    model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_args: object, **_options: object) -> None:
        raise RuntimeError("data-dependent\nand much more")

    monkeypatch.setattr(torch.export, "export", refuse)
    with pytest.raises(ModelError, match=r"torch cannot export the twin: data-dependent$"):
        TwinProgram.of(model).export()


def test_where_torch_keeps_the_batch_alone_open_it_is_said(tmp_path: Path) -> None:
    model = build(
        'net (float[N,2,H,5] x) => (float[N,2,A,B] y) { y = Resize<mode="nearest">(x, , s) }',
        {"s": np.array([1, 1, 1.5, 2], np.float32)},
    )
    onnx.save(model, tmp_path / "model.onnx")
    arguments = ["twin", str(tmp_path / "model.onnx"), "-o", str(tmp_path / "module.pt2")]
    result = CliRunner().invoke(cli, [*arguments, "--input-shape", "x:1x2x6x5"])
    assert result.exit_code == 0
    assert result.stderr.startswith("the program takes any batch, but only inputs 'x' of ?x2x6x5:")
    assert "at Resize 'y'" in result.stderr
    module = torch.export.load(tmp_path / "module.pt2").module()
    for batch in (1, 5):
        x = np.random.default_rng(batch).standard_normal((batch, 2, 6, 5)).astype(np.float32)
        (expected,) = run_onnx(Graph.from_model(model), {"x": x}).values()
        np.testing.assert_allclose(module(torch.from_numpy(x))[0].numpy(), expected, rtol=1e-5)


def test_both_branches_of_an_if_are_exported(tmp_path: Path) -> None:
    text = (
        "net (float[N,6] x, bool c) => (float[N,4] y) <float[4,6] w> {"
        "  s = If(c) <then_branch = t () => (float[N,6] e) { e = Identity(x) },"
        "  else_branch = f () => (float[N,6] g) { h = Abs(x) g = If(c) <"
        "  then_branch = u () => (float[N,6] i) { i = Neg(h) },"
        "  else_branch = v () => (float[N,6] j) { j = Add(h, x) }> }>"
        "  y = Gemm<transB=1>(s, w) }"
    )
    graph = Graph.from_model(build(text))
    TwinProgram.of(graph).save(tmp_path / "module.pt2")
    module = torch.export.load(tmp_path / "module.pt2").module()
    x = np.random.default_rng(0).standard_normal((3, 6)).astype(np.float32)
    for chosen in (True, False):
        condition = np.array(chosen)
        (expected,) = run_onnx(graph, {"x": x, "c": condition}).values()
        with torch.no_grad():
            (found,) = module(torch.from_numpy(x), torch.from_numpy(condition))
        np.testing.assert_allclose(found.numpy(), expected, rtol=1e-4, atol=1e-5)


def test_weights_are_written_back(model: Path) -> None:
    program = TwinProgram.of(model)
    again = program.twin.write_to(program.graph)
    assert again.to_model() == program.graph.to_model()
    name, parameter = next(iter(program.twin.named_parameters()))
    with torch.no_grad():
        parameter.mul_(2)
    changed = program.twin.write_to(program.graph)
    stored = initializer_name(name)
    np.testing.assert_array_equal(
        changed.initializers[stored], 2 * program.graph.initializers[stored]
    )
    assert all(
        np.array_equal(array, changed.initializers[other])
        for other, array in program.graph.initializers.items()
        if other != stored
    )


@pytest.mark.parametrize("form", EXPORTED)
def test_an_exported_program_keeps_its_batch_open(form: str) -> None:
    call, constants = EXPORTED[form]
    model = build(f"net (float[N,2,5,5] x) => (float[N,2,H,W] y) {{ {call} }}", constants)
    program = TwinProgram.of(model).export()
    for batch in (1, 5):
        assert program.module()(torch.ones(batch, 2, 5, 5))[0].shape[0] == batch


def test_an_exported_program_that_would_be_for_one_size_is_refused() -> None:
    model = build(
        'net (float[N,2,H,5] x) => (float[N,2,A,B] y) { y = Resize<mode="nearest">(x, , s) }',
        {"s": np.array([1, 1, 1.5, 2], np.float32)},
    )
    with pytest.raises(ModelError, match="torch cannot export the twin"):
        TwinProgram.of(model, {"x": (2, 2, 6, 5)}).export()
