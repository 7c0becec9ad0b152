"""Equivalent pruning in weight space against explicit 1x1 layers, in float64."""

from __future__ import annotations

from contextlib import nullcontext
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import pytest
import torch
from equivalent.explicit import BLOCKED, EXPLICIT, Parts, copy_of, parts_of
from helpers import build, random_keep
from nets import NETS, Case, case_of, draw_inputs, draw_keep, error_of, prune, sine_loss
from torch.nn import functional as fn
from torch.utils.flop_counter import FlopCounterMode

from obc_onnx.axes.expressions import leaves
from obc_onnx.equivalent.maps import Mix
from obc_onnx.equivalent.network import EquivalentTwin
from obc_onnx.surgery.cut import Cut
from obc_onnx.twin.build import derived_twin

if TYPE_CHECKING:
    from contextlib import AbstractContextManager

    import onnx
    from torch import Tensor, fx

    from obc_onnx.coupling.model import Keep
    from obc_onnx.graph.model import Graph

EXACT = 1e-10
STEPS = 20


class Student(NamedTuple):
    """An equivalent twin, and what it was made from."""

    case: Case
    keep: Keep
    pruned: Graph
    twin: EquivalentTwin


def student_of(name: str | onnx.ModelProto, keep: Keep | None = None) -> Student:
    case = case_of(name)
    keep = draw_keep(case.coupling) if keep is None else keep
    pruned = prune(case, keep)
    return Student(case, keep, pruned, EquivalentTwin(Cut(case.coupling, keep, pruned)))


def disturb(student: Student) -> None:
    """Move the matrices away from selections."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for matrix in student.twin.matrices():
            matrix.add_(torch.randn(matrix.shape, generator=generator, dtype=matrix.dtype) / 3)


def train(student: Student, *, mode: bool = True) -> None:
    optimizer = torch.optim.SGD(student.twin.parameters(), lr=0.002)
    inputs = draw_inputs(student.case.graph, 4, seed=1)
    student.twin.train(mode)
    for _ in range(STEPS):
        optimizer.zero_grad()
        sine_loss(student.twin(*inputs)).backward()
        optimizer.step()
    student.twin.eval()


def plain(student: Student, graph: Graph) -> fx.GraphModule:
    return derived_twin(graph, student.case.coupling)


def assert_equal_outputs(left: torch.nn.Module, right: torch.nn.Module, graph: Graph) -> None:
    inputs = draw_inputs(graph, 3, seed=2)
    assert error_of(left(*inputs)[0], right(*inputs)[0]) < EXACT


def gradients(parts: Parts) -> dict[str, Tensor | None]:
    grads = {f"full {name}": t.grad for name, t in parts.full.items()}
    grads |= {f"sliced {name}": t.grad for name, t in parts.sliced.items()}
    return grads | {
        f"matrix {i} of {name}": m.grad
        for name, matrices in parts.mixes.items()
        for i, m in enumerate(matrices)
    }


def explicit_outputs(name: str, parts: Parts, student: Student, x: Tensor) -> Tensor:
    if name in EXPLICIT:
        return EXPLICIT[name](parts, x)
    blocks = student.case.coupling.by_name["w1:0.0"].dim
    return BLOCKED[name](parts, x, torch.from_numpy(student.keep[blocks]))


@pytest.mark.parametrize("shape", [(6,), (6, 5), (6, 5, 3), (6, 5, 3, 2), (6, 5, 3, 2, 2)])
def test_a_matrix_multiplies_any_axis_and_keeps_channels_last(shape: tuple[int, ...]) -> None:
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(shape, generator=generator, dtype=torch.float64)
    last = weight.movedim(1, -1).contiguous().movedim(-1, 1) if len(shape) > 1 else weight
    for axis, size in enumerate(shape):
        mix = Mix(torch.randn(2, size, generator=generator, dtype=torch.float64))
        expected = torch.tensordot(weight, mix.matrix, ([axis], [1])).movedim(-1, axis)
        found = mix(last, axis)
        assert torch.allclose(found, expected, rtol=1e-12, atol=1e-12)
        if len(shape) > 1 and axis < 2:
            assert found.movedim(1, -1).is_contiguous()


def flops_of_weights(twin: EquivalentTwin) -> int:
    with FlopCounterMode(display=False) as counter:
        twin.effective_weights()
    return int(counter.get_total_flops())


@pytest.mark.parametrize(("read", "written"), [(1, 5), (4, 1), (3, 3), (5, 2)])
def test_axes_are_mapped_in_the_order_of_fewest_multiplications(read: int, written: int) -> None:
    case = case_of("dense")
    sizes = {"w1:0": read, "w2:0": written}
    groups = [group for group in case.coupling.groups if group.name in sizes]
    keep = {group.dim: np.arange(group.size) < sizes[group.name] for group in groups}
    twin = EquivalentTwin(Cut(case.coupling, keep, prune(case, keep)))
    found, targets = flops_of_weights(twin), twin._targets
    twin._targets = [(target, i, placed[::-1]) for target, i, placed in targets]
    other = flops_of_weights(twin)
    assert 0 < found <= other
    assert found < other or (read, written) == (3, 3)


@pytest.mark.parametrize("name", NETS)
def test_held_weights_give_the_gradients_of_passes_that_make_their_own(name: str) -> None:
    student = student_of(name)
    disturb(student)
    feeds = [draw_inputs(student.case.graph, 4, seed=seed) for seed in (1, 2)]

    def grads_and_work(block: AbstractContextManager[None]) -> tuple[dict[str, Tensor], int]:
        student.twin.zero_grad()
        with FlopCounterMode(display=False) as counter, block:
            for feed in feeds:
                sine_loss(student.twin(*feed)).backward()
        found = {
            n: p.grad.clone() for n, p in student.twin.named_parameters() if p.grad is not None
        }
        return found, int(counter.get_total_flops())

    own, work = grads_and_work(nullcontext())
    held, less = grads_and_work(student.twin.hold_weights())
    assert own.keys() == held.keys()
    for key, grad in own.items():
        torch.testing.assert_close(held[key], grad, rtol=EXACT, atol=EXACT)
    assert less < work


def test_weights_are_held_to_the_end_of_the_block_and_no_longer() -> None:
    student = student_of("dense")
    inputs = draw_inputs(student.case.graph, 4, seed=1)

    def output() -> Tensor:
        return student.twin(*inputs)[0].detach()

    def break_off() -> None:
        with student.twin.hold_weights():
            sine_loss(student.twin(*inputs)).backward()
            disturb(student)
            assert torch.equal(output(), before)
            raise KeyError

    before = output()
    with pytest.raises(KeyError):
        break_off()
    assert all(parameter.grad is None for parameter in student.twin.full)
    assert error_of(output(), before) > 0.01


def test_nothing_is_differentiated_where_weights_are_held_for_judging() -> None:
    student = student_of("norm")
    inputs = draw_inputs(student.case.graph, 4, seed=1)
    with torch.no_grad(), student.twin.eval().hold_weights():
        held = student.twin(*inputs)[0]
    assert not held.requires_grad
    assert torch.equal(held, student.twin(*inputs)[0])


@pytest.mark.parametrize("name", NETS)
def test_before_training_it_is_the_sliced_network(name: str) -> None:
    student = student_of(name)
    assert_equal_outputs(student.twin.eval(), plain(student, student.pruned), student.pruned)


@pytest.mark.parametrize("name", NETS)
def test_after_training_the_folded_network_is_the_same(name: str) -> None:
    student = student_of(name)
    train(student)
    folded = plain(student, student.twin.fold(student.pruned))
    assert_equal_outputs(student.twin, folded, student.pruned)
    student.twin.train()
    assert_equal_outputs(student.twin, folded.train(), student.pruned)


@pytest.mark.parametrize("name", NETS)
def test_training_reaches_every_matrix_and_every_weight(name: str) -> None:
    student = student_of(name)
    before = [p.detach().clone() for p in (*student.twin.matrices(), *student.twin.weights())]
    train(student, mode=False)  # a norm of batch statistics takes the gradient from a bias
    after = [*student.twin.matrices(), *student.twin.weights()]
    assert not any(torch.equal(b, a) for b, a in zip(before, after, strict=True))


@pytest.mark.parametrize("name", [*EXPLICIT, *BLOCKED])
def test_a_step_is_that_of_explicit_layers(name: str) -> None:
    student = student_of(name)
    disturb(student)
    own = parts_of(student.twin)
    drawn = copy_of(own)
    (x,) = draw_inputs(student.case.graph, 4)
    (found,) = student.twin.train()(x)
    expected = explicit_outputs(name, drawn, student, x)
    assert error_of(found, expected) < EXACT
    for outputs in (found, expected):
        sine_loss((outputs,)).backward()
    actual = gradients(own)
    for key, grad in gradients(drawn).items():
        assert grad is not None, f"{key} has no place in the explicit network"
        assert error_of(actual[key], grad, floor=1e-3) < EXACT, key


@pytest.mark.parametrize("name", [*EXPLICIT, *BLOCKED])
def test_steps_are_those_of_explicit_layers(name: str) -> None:
    student = student_of(name)
    own = parts_of(student.twin)
    drawn = copy_of(own)
    (x,) = draw_inputs(student.case.graph, 4)
    student.twin.train()
    optimizers = [
        torch.optim.SGD(tensors_of(parts), lr=0.002, momentum=0.9) for parts in (own, drawn)
    ]
    for _ in range(STEPS):
        outputs = (student.twin(x)[0], explicit_outputs(name, drawn, student, x))
        for output, optimizer in zip(outputs, optimizers, strict=True):
            optimizer.zero_grad()
            sine_loss((output,)).backward()
            optimizer.step()
    assert error_of(student.twin(x)[0], explicit_outputs(name, drawn, student, x)) < EXACT
    for mine, other in zip(tensors_of(own), tensors_of(drawn), strict=True):
        assert error_of(mine, other, floor=1e-3) < EXACT


def tensors_of(parts: Parts) -> list[Tensor]:
    matrices = [matrix for own in parts.mixes.values() for matrix in own]
    return [*parts.full.values(), *matrices, *parts.sliced.values()]


def test_a_decompressor_with_a_bias_would_not_fold() -> None:
    """Inside the image a bias c of D moves into Q's bias; zero padding does not know of it."""
    rng = torch.Generator().manual_seed(0)
    x, q, d, c = (
        torch.randn(shape, generator=rng, dtype=torch.float64)
        for shape in ((1, 2, 6, 6), (3, 4, 3, 3), (4, 2), (4,))
    )
    explicit = fn.conv2d(fn.conv2d(x, d[:, :, None, None], c), q, padding=1)
    folded_weight = torch.einsum("oikl,ij->ojkl", q, d)
    folded = fn.conv2d(x, folded_weight, torch.einsum("oikl,i->o", q, c), padding=1)
    difference = (explicit - folded).abs().amax((0, 1))
    assert difference[1:-1, 1:-1].max() < EXACT
    border = torch.ones(6, 6, dtype=torch.bool)
    border[1:-1, 1:-1] = False
    assert (difference[border] > 0.1).all()


def test_a_matrix_is_all_that_a_map_learns() -> None:
    for name in NETS:
        maps = student_of(name).twin.maps
        assert all(key.endswith("matrix") for key, _ in maps.named_parameters())
        assert all(m.matrix.ndim == 2 for m in maps.modules() if isinstance(m, Mix))


@pytest.mark.parametrize("name", NETS)
def test_matrices_go_from_full_to_kept(name: str) -> None:
    student = student_of(name)
    coupling = student.case.coupling
    sizes = {g.dim: (int(student.keep[g.dim].sum()), g.size) for g in coupling.groups}
    for key, matrices in parts_of(student.twin).mixes.items():
        weight, axis = key.rsplit(":", 1)
        allowed = [sizes[d] for d in leaves(coupling.axes[weight][int(axis)]) if d in sizes]
        assert {tuple(matrix.shape) for matrix in matrices} <= set(allowed)
        assert all(((m == 0) | (m == 1)).all() and (m.sum(1) == 1).all() for m in matrices)


def test_a_residual_stream_shares_the_kept_set_and_not_the_matrices() -> None:
    student = student_of("residual")
    mixes = parts_of(student.twin).mixes
    stream = [mixes[key][0] for key in ("w0:0", "w2:0", "w1:1", "w3:1", "w4:1")]
    assert len({id(matrix) for matrix in stream}) == len(stream)
    assert all(torch.equal(matrix, stream[0]) for matrix in stream)
    train(student)
    assert not any(torch.equal(matrix, stream[0]) for matrix in stream[1:])


def test_a_bias_is_compressed_by_the_matrix_of_its_weight() -> None:
    student = student_of("dense")
    disturb(student)
    parts, weights = parts_of(student.twin), student.twin.effective_weights()
    expected = parts.mixes["w1:0"][0] @ parts.full["b1"]
    assert error_of(weights["b1"], expected) < EXACT
    assert len(list(student.twin.matrices())) == len(parts.mixes)


@pytest.mark.parametrize(
    ("name", "mixed", "sliced"),
    [
        ("depthwise", {"w1:0", "w3:0", "w3:1", "fc:1"}, {"w2", "b2", "fc_b"}),
        (
            "shared bias",
            {"w1:0", "w2:0", "w3:0", "w3:1", "w4:0", "w4:1", "fc:1"},
            {"fc_b"},
        ),
        ("matmul left", {"w1:0", "fc:1"}, {"b1"}),
        ("bare", {"w1:0", "w2:0", "w2:1", "fc:1"}, {"p", "q", "r", "fc_b"}),
    ],
)
def test_only_dense_weights_have_matrices(name: str, mixed: set[str], sliced: set[str]) -> None:
    parts = parts_of(student_of(name).twin)
    assert parts.mixes.keys() == mixed
    assert parts.sliced.keys() == sliced


def test_a_weight_with_a_computed_addend_has_no_compressor() -> None:
    """The addend is at its pruned width, so there is no full-width sum to compress."""
    text = (
        "net (float[N,7] x) => (float[N,4] y) <float[6,7] w1, float[6,6] w2, float[4,6] fc>"
        "{ c1 = Gemm<transB=1>(x, w1) t1 = Tanh(c1) c2 = Gemm<transB=1>(t1, w2, t1)"
        "  y = Gemm<transB=1>(c2, fc) }"
    )
    assert parts_of(student_of(build(text)).twin).mixes.keys() == {"w1:0", "w2:1", "fc:1"}


def test_copies_of_parametrised_weights_are_not_trained() -> None:
    student = student_of("residual")
    twin = student.twin
    copies = {n: p for n, p in twin.twin.named_parameters() if not p.requires_grad}
    assert copies.keys() == twin.effective_weights().keys()
    learned = {id(p) for p in (*twin.weights(), *twin.matrices())}
    assert learned.isdisjoint(map(id, copies.values()))
    before = {name: copy.clone() for name, copy in copies.items()}
    train(student)
    assert all(torch.equal(copies[name], copy) for name, copy in before.items())


def test_weights_and_matrices_are_all_that_learns_each_once() -> None:
    twin = student_of("tied").twin
    listed = [id(p) for p in (*twin.weights(), *twin.matrices())]
    assert len(listed) == len(set(listed))
    assert set(listed) == {id(p) for p in twin.parameters() if p.requires_grad}


@pytest.mark.parametrize("name", ["dense", "gemm", "residual", "norm", "shared weight"])
def test_one_unit_of_each_group_may_be_left(name: str) -> None:
    case = case_of(name)
    keep = {group.dim: np.arange(group.size) == 1 for group in case.coupling.groups}
    pruned = prune(case, keep)
    student = Student(case, keep, pruned, EquivalentTwin(Cut(case.coupling, keep, pruned)))
    assert_equal_outputs(student.twin.eval(), plain(student, pruned), pruned)
    train(student)
    assert_equal_outputs(student.twin, plain(student, student.twin.fold(pruned)), pruned)


def test_nothing_removed_leaves_a_plain_twin() -> None:
    student = student_of("residual", keep={})
    assert not list(student.twin.matrices())
    assert not student.twin.effective_weights()
    assert_equal_outputs(student.twin, plain(student, student.case.graph), student.case.graph)


@pytest.mark.parametrize("name", NETS)
def test_any_kept_set_folds_to_the_pruned_shapes(name: str) -> None:
    for seed in range(3):
        case = case_of(name)
        keep = random_keep(case.coupling, np.random.default_rng(seed))
        pruned = prune(case, keep)
        folded = EquivalentTwin(Cut(case.coupling, keep, pruned)).fold(pruned)
        for initializer, array in pruned.initializers.items():
            np.testing.assert_array_equal(folded.initializers[initializer], array)
