"""Recurrent layers: forms that ONNX Runtime lacks, taps, gradients, training and refusals."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pytest
import torch
from gradients import brute_force, twin_of
from helpers import (
    OPSET,
    analyse,
    assert_close,
    build,
    make_feed,
    random_keep,
    removes_something,
    run_onnx,
    run_twin,
)
from nets import case_of, draw_inputs, draw_keep, error_of, prune, sine_loss
from onnx.reference import ReferenceEvaluator

from obc_onnx.coupling.inference import find_coupling
from obc_onnx.equivalent.network import EquivalentTwin
from obc_onnx.errors import UnsupportedOperatorError
from obc_onnx.graph.model import Graph
from obc_onnx.ops.catalogue import DEFAULT_RULES
from obc_onnx.ops.recurrent.forward import recur
from obc_onnx.saliency.taps import Taps
from obc_onnx.surgery.cut import Cut, remove_units
from obc_onnx.surgery.mask import mask_reads
from obc_onnx.twin.build import build_twin, derived_twin

if TYPE_CHECKING:
    import onnx
    from numpy.typing import NDArray

    from obc_onnx.coupling.model import Coupling

    Feed = dict[str, NDArray]

GATES = {"GRU": 3, "LSTM": 4, "RNN": 1}
STEPS, FEATURES, HIDDEN, BATCH = 5, 4, 6, 3
SIZE, BOTH = f"hidden_size={HIDDEN}", 'direction="bidirectional"'
EXACT = 1e-10
SIGMOID, TANH = ("sigmoid",), ("tanh",)
ACTIVATIONS = {"GRU": (SIGMOID, TANH), "LSTM": (SIGMOID, TANH, TANH), "RNN": (TANH,)}
each_operator = pytest.mark.parametrize("op_type", GATES)


def net_of(
    op_type: str,
    attributes: str = f"{SIZE}, {BOTH}",
    operands: str = "W, R, B",
    *,
    directions: int = 2,
    opset: int = OPSET,
    batch_first: bool = False,
) -> onnx.ModelProto:
    """Build a net of one layer between weights that write its input and read both its outputs."""
    width = GATES[op_type] * HIDDEN
    first = (BATCH, directions) if batch_first else (directions, BATCH)
    state = ",".join(map(str, (*first, HIDDEN)))
    shapes = {
        "W": f"{directions},{width},{FEATURES}",
        "R": f"{directions},{width},{HIDDEN}",
        "B": f"{directions},{2 * width}",
        "H0": state,
        "C0": state,
        "P": f"{directions},{3 * HIDDEN}",
    }
    used = [word.strip() for word in operands.split(",")]
    weights = ", ".join(f"float[{shapes[word]}] {word}" for word in used if word)
    batch = BATCH if "H0" in used else "N"
    order = "Identity" if batch_first else "Transpose<perm=[1,0,2]>"
    return build(
        f"net (float[{batch},{STEPS},3] x) => (float[a,b,c,2] y, float[d,e,2] z) "
        f"<float[3,{FEATURES}] w_in, float[{HIDDEN},2] w_y, float[{HIDDEN},2] w_z, {weights}>"
        f"{{ t = MatMul(x, w_in) s = {order}(t) "
        f"A, H = {op_type}<{attributes}>(s, {operands}) y = MatMul(A, w_y) z = MatMul(H, w_z) }}",
        opset=opset,
    )


def feed_of(graph: Graph) -> Feed:
    return make_feed(graph, np.random.default_rng(0), BATCH)


def evaluate(graph: Graph, feed: Feed) -> Feed:
    """Run ONNX's own reference, which has what ONNX Runtime lacks."""
    names = [port.name for port in graph.outputs]
    return dict(zip(names, ReferenceEvaluator(graph.to_model()).run(names, feed), strict=True))


def assert_pruned_equals_masked_by_reference(coupling: Coupling, feed: Feed) -> None:
    rng = np.random.default_rng(0)
    for _ in range(3):
        keep = random_keep(coupling, rng)
        assert removes_something(keep)
        masked = evaluate(mask_reads(coupling, keep), feed)
        assert_close(evaluate(remove_units(coupling, keep), feed), masked)


@each_operator
@pytest.mark.parametrize("direction", ["forward", "reverse", "bidirectional"])
def test_batch_first_layouts_are_pruned_and_computed(op_type: str, direction: str) -> None:
    model = net_of(
        op_type,
        f'{SIZE}, layout=1, direction="{direction}"',
        "W, R, B, , H0, C0, P" if op_type == "LSTM" else "W, R, B, , H0",
        directions=2 if direction == "bidirectional" else 1,
        batch_first=True,
    )
    graph, shapes, coupling = analyse(model)
    feed = feed_of(graph)
    assert_close(run_twin(graph, shapes, feed), evaluate(graph, feed))
    assert [group.size for group in coupling.groups] == [FEATURES, HIDDEN]
    assert coupling.shapes == shapes
    assert_pruned_equals_masked_by_reference(coupling, feed)


@each_operator
def test_hidden_size_may_be_left_out(op_type: str) -> None:
    """Neither shape inference nor ONNX Runtime can do without, so shapes have to be known."""
    graph, shapes = Graph.from_model(net_of(op_type, BOTH)), analyse(net_of(op_type)).shapes
    coupling = find_coupling(graph, shapes, DEFAULT_RULES)
    assert [group.size for group in coupling.groups] == [FEATURES, HIDDEN]
    assert_pruned_equals_masked_by_reference(coupling, feed_of(graph))
    pruned = remove_units(coupling, draw_keep(coupling))
    (node,) = [node for node in pruned.nodes if node.op_type == op_type]
    assert "hidden_size" not in node.attributes


@each_operator
def test_the_oldest_opset_is_coupled_and_computed_as_later_ones(op_type: str) -> None:
    oldest = 3 if op_type == "GRU" else 1
    old = Graph.from_model(
        net_of(op_type, f"{SIZE}, output_sequence=1", directions=1, opset=oldest)
    )
    later, shapes, coupling = analyse(net_of(op_type, SIZE, directions=1, opset=7))
    found = find_coupling(old, shapes, DEFAULT_RULES)
    assert [(g.name, g.size) for g in found.groups] == [(g.name, g.size) for g in coupling.groups]
    feed = feed_of(old)
    assert_close(run_twin(old, shapes, feed), run_onnx(later, feed))


@each_operator
def test_a_hidden_unit_is_one_position_of_every_gate_and_direction(op_type: str) -> None:
    operands = "W, R, B, , , , P" if op_type == "LSTM" else "W, R, B"
    coupling = case_of(net_of(op_type, operands=operands)).coupling
    (hidden,) = [group for group in coupling.groups if group.size == HIDDEN]
    kept = coupling.kept_positions({hidden.dim: np.arange(HIDDEN) != 2})
    gone = {
        (name, axis): sorted({*range(coupling.shapes[name][axis])} - {*positions.tolist()})
        for name, axes in kept.items()
        for axis, positions in axes.items()
    }
    n_gates = GATES[op_type]
    rows = [HIDDEN * gate + 2 for gate in range(2 * n_gates)]
    expected = {
        ("W", 1): rows[:n_gates],
        ("R", 1): rows[:n_gates],
        ("R", 2): [2],
        ("B", 1): rows,
        ("w_y", 0): [2],
        ("w_z", 0): [2],
    }
    roles = {(1, 1, "writes"), (2, 1, "writes"), (2, 2, "reads"), (3, 1, "scales")}
    if op_type == "LSTM":
        expected["P", 1] = rows[:3]
        roles.add((7, 1, "scales"))
    assert gone == expected
    members = [role for role in hidden.members if role.node.op_type == op_type]
    assert {(role.slot, role.axis, role.kind) for role in members} == roles


@each_operator
def test_all_weights_are_scored(op_type: str) -> None:
    case = case_of(net_of(op_type))
    inputs = draw_inputs(case.graph, 1)
    rows = Taps(twin_of(case), case.coupling).rows(inputs, sine_loss)
    expected = brute_force(case, inputs, sine_loss)
    members = {member for member, _ in rows}
    own = {("W", 1), ("W", 2), ("R", 1), ("R", 2), ("B", 1)}
    assert members == own | {("w_in", 1), ("w_y", 0), ("w_z", 0)}
    for key, row in rows.items():
        assert error_of(row, expected[key]) < EXACT, key


@each_operator
@pytest.mark.parametrize("option", [False, True])
@pytest.mark.parametrize("with_lengths", [False, True])
def test_gradients_are_those_of_finite_differences(
    op_type: str, option: bool, with_lengths: bool
) -> None:
    generator = torch.Generator().manual_seed(0)
    width, state = GATES[op_type] * 3, (2, 2, 3)
    shapes = [(4, 2, 2), (2, width, 2), (2, width, 3), (2, 2 * width), state]
    shapes += [state, (2, 9)] if op_type == "LSTM" else []
    lengths = torch.tensor([4, 2], dtype=torch.int32) if with_lengths else None

    def run(*tensors: torch.Tensor) -> tuple[torch.Tensor, ...]:
        return recur(
            *tensors[:4],
            lengths,
            *tensors[4:],
            op_type=op_type,
            activations=ACTIVATIONS[op_type] * 2,
            clip=2.0,
            direction="bidirectional",
            batch_first=False,
            option=option,
            n_outputs=2,
        )

    tensors = [torch.randn(shape, generator=generator, dtype=torch.float64) for shape in shapes]
    assert torch.autograd.gradcheck(run, [tensor.requires_grad_() for tensor in tensors])


@each_operator
def test_the_twin_takes_other_lengths_and_batches(op_type: str) -> None:
    graph, shapes, _ = analyse(net_of(op_type))
    twin = build_twin(graph, shapes, DEFAULT_RULES)
    model = graph.to_model()
    model.graph.input[0].type.tensor_type.shape.dim[1].dim_param = "T"
    x = np.random.default_rng(0).standard_normal((7, 9, 3)).astype(np.float32)
    with torch.no_grad():
        found = [value.numpy() for value in twin(torch.from_numpy(x))]
    expected = run_onnx(Graph.from_model(model), {"x": x})
    assert_close(dict(zip(expected, found, strict=True)), expected)


@each_operator
def test_a_pruned_layer_trains_with_all_of_its_weights(op_type: str) -> None:
    operands = "W, R, B, , , , P" if op_type == "LSTM" else "W, R, B"
    case = case_of(net_of(op_type, operands=operands))
    keep = draw_keep(case.coupling)
    pruned = prune(case, keep)
    student = EquivalentTwin(Cut(case.coupling, keep, pruned))
    inputs = draw_inputs(case.graph, 2)
    expected = derived_twin(pruned, case.coupling)(*inputs)
    outputs = student(*inputs)
    assert all(error_of(a, b) < EXACT for a, b in zip(outputs, expected, strict=True))
    sine_loss(outputs).backward()
    matrices, weights = [*student.matrices()], [*student.weights()]
    assert len(matrices) == len(["w_in:1", "W:2", "R:2", "w_y:0", "w_z:0"])
    assert len(weights) == len(case.graph.initializers)
    assert all(weight.grad is not None for weight in (*weights, *matrices))


@pytest.mark.parametrize(
    ("attributes", "message"),
    [
        ('activations=["Mish"]', "activation 'Mish' is not known"),
        ('activations=["Affine"], activation_alpha=[1.0]', "leaves out numbers"),
        ('activations=["ThresholdedRelu"]', "leaves out numbers"),
    ],
)
def test_activations_without_one_meaning_have_no_twin(attributes: str, message: str) -> None:
    graph, shapes, _ = analyse(net_of("RNN", f"{SIZE}, {attributes}", directions=1))
    with pytest.raises(UnsupportedOperatorError, match=message):
        build_twin(graph, shapes, DEFAULT_RULES)
