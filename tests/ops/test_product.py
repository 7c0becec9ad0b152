"""Products by letters: roles, taps, training, what attention leaves free, and how they count."""

from __future__ import annotations

import pytest
from gradients import brute_force, twin_of
from helpers import build, coupling_of
from nets import Case, case_of, draw_inputs, draw_keep, error_of, prune, sine_loss

from obc_onnx.equivalent.network import EquivalentTwin
from obc_onnx.graph.node import Node
from obc_onnx.ops.einsum import Einsum
from obc_onnx.saliency.taps import Taps
from obc_onnx.surgery.cut import Cut
from obc_onnx.twin.build import derived_twin

EXACT = 1e-10
PRODUCTS = {
    "nti,io->nto": ("T, W", "4,5", 5),
    "oi,nti->nto": ("W, T", "5,4", 5),
    "nti,iho->ntho": ("T, W", "4,2,5", 5),
    "nti,i->nti": ("T, W", "4", 4),
    "nti,tio->nto": ("T, W", "3,4,5", 5),
    "nti,o->ntio": ("T, W", "5", 5),
    "nti,no->nio": ("T, W", "1,5", 5),
    "nti,tho->ntho": ("T, W", "1,2,5", 5),
    "nti,ijo,ntj->nto": ("T, W, U", "4,6,5", 5),
    "nti,ij,jo->nto": ("T, W, V", "4,6", 5),
    "nti,nti,i->nti": ("T, T, W", "4", 4),
}
"""By equation: its operands, the shape of W, and the features of the result."""
each_product = pytest.mark.parametrize("equation", PRODUCTS)


def net_of(equation: str) -> Case:
    """Put an Einsum between weights: T has 4 features, and U has 6."""
    operands, shape, width = PRODUCTS[equation]
    leading = ",".join(f"size_{letter}" for letter in equation.split("->")[1][:-1])
    second = "p = MatMul(x, u) U = Tanh(p)" if "U" in operands else ""
    return case_of(
        build(
            f"net (float[n,3,7] x) => (float[{leading},2] y) "
            f"<float[7,4] t, float[7,6] u, float[6,5] V, float[{shape}] W, float[{width},2] c>"
            f"{{ s = MatMul(x, t) T = Sigmoid(s) {second}"
            f' e = Einsum<equation="{equation}">({operands}) h = Tanh(e) y = MatMul(h, c) }}'
        )
    )


@each_product
def test_taps_equal_weights_times_their_gradients(equation: str) -> None:
    case = net_of(equation)
    inputs = draw_inputs(case.graph, 1)
    rows = Taps(twin_of(case), case.coupling).rows(inputs, sine_loss)
    expected = brute_force(case, inputs, sine_loss)
    assert expected.keys() == rows.keys()
    for key, row in rows.items():
        assert error_of(row, expected[key]) < EXACT, key


@each_product
def test_a_pruned_product_trains_from_its_sliced_weights(equation: str) -> None:
    case = net_of(equation)
    keep = draw_keep(case.coupling)
    pruned = prune(case, keep)
    student = EquivalentTwin(Cut(case.coupling, keep, pruned))
    inputs = draw_inputs(case.graph, 2)
    expected = derived_twin(pruned, case.coupling)(*inputs)
    outputs = student(*inputs)
    assert error_of(outputs[0], expected[0]) < EXACT
    sine_loss(outputs).backward()
    used = {name for node in case.graph.nodes for name in node.inputs}
    weights = [*student.weights()]
    assert len(weights) == len(used & case.graph.initializers.keys())
    assert all(weight.grad is not None for weight in (*weights, *student.matrices()))


ROLES = {
    'Einsum<equation="nti,tio->nto">(T, W)': {
        ("W", 0): ("scales", False, ("output", 0, 1)),
        ("W", 1): ("reads", False, ("input", 0, 2)),
        ("W", 2): ("writes", False, ("output", 0, 2)),
    },
    'Einsum<equation="nti,iho->ntoh">(T, V)': {
        ("V", 0): ("reads", True, ("input", 0, 2)),
        ("V", 1): ("writes", True, ("output", 0, 3)),
        ("V", 2): ("writes", True, ("output", 0, 2)),
    },
    'Einsum<equation="nti,nsi->nts">(T, T)': {("T", 2): ("reads", False, None)},
    "MatMul(T, W)": {
        ("W", 0): ("scales", False, ("output", 0, 0)),
        ("W", 1): ("reads", False, ("input", 0, 2)),
        ("W", 2): ("writes", False, ("output", 0, 2)),
    },
    "MatMul(column, row)": {("column", 1): ("reads", False, None)},
    "Gemm(M, D)": {
        ("D", 0): ("reads", True, ("input", 0, 1)),
        ("D", 1): ("writes", True, ("output", 0, 1)),
    },
    "Gemm(M, D, bias)": {
        ("D", 0): ("reads", True, ("input", 0, 1)),
        ("D", 1): ("writes", True, ("output", 0, 1)),
    },
    "Gemm(M, D, M)": {
        ("D", 0): ("reads", True, ("input", 0, 1)),
        ("D", 1): ("writes", True, None),
    },
    "Gemm(M, D, number)": {
        ("D", 0): ("reads", True, ("input", 0, 1)),
        ("D", 1): ("writes", True, None),
    },
    "Gemm<transB=1>(D, M, bias_of_rows)": {
        ("D", 0): ("writes", True, None),
        ("D", 1): ("reads", True, ("input", 1, 1)),
    },
}
"""Of operands and their axes: what they do, whether they may be recombined, and their taps."""


@pytest.mark.parametrize("call", ROLES)
def test_roles_follow_from_letters(call: str) -> None:
    coupling = coupling_of(
        "net (float[3,3,7] x, float[5,7] z) => (float[a] y) <float[7,4] t, float[7,4] m,"
        " float[3,4,5] W, float[4,2,5] V, float[4,4] D, float[4] bias, float[1] number,"
        " float[4,1] bias_of_rows, float[9,1] column, float[1,9] row>"
        f"{{ T = MatMul(x, t) M = MatMul(z, m) e = {call} f = Relu(e) y = Flatten(f) }}"
    )
    roles = [role for role in coupling.roles if role.node.key == "e"]
    found = {
        (role.node.inputs[role.slot], role.axis): (
            role.kind,
            bool(role.mixes),
            None if role.tap is None else (role.tap.at, role.tap.slot, role.tap.axis),
        )
        for role in roles
    }
    assert found == ROLES[call]
    assert len(roles) == len(found)


@pytest.mark.parametrize("layout", ["bqhd,bkhd->bhqk", "bhqd,bhkd->bhqk"])
def test_attention_leaves_heads_and_the_dims_of_heads_free(layout: str) -> None:
    heads_first = layout.startswith("bh")
    made = " ".join(
        f"{x} = MatMul(x, w_{x}) {x}_4 = Reshape({x}, split)"
        f" {x}_h = Transpose<perm=[{'0,2,1,3' if heads_first else '0,1,2,3'}]>({x}_4)"
        for x in "qkv"
    )
    value, back = ("bhkd->bhqd", "0,2,1,3") if heads_first else ("bkhd->bqhd", "0,1,2,3")
    coupling = coupling_of(
        "net (float[n,5,7] x) => (float[n,t,2] y)"
        " <float[7,12] w_q, float[7,12] w_k, float[7,12] w_v, float[12,2] w_o>"
        f'{{ {made} s = Einsum<equation="{layout}">(q_h, k_h) a = Softmax(s)'
        f' o = Einsum<equation="bhqk,{value}">(a, v_h) o_4 = Transpose<perm=[{back}]>(o)'
        " m = Reshape(o_4, merge) y = MatMul(m, w_o) }",
        {"split": [0, 0, 3, 4], "merge": [0, 0, -1]},
    )
    assert {group.name: group.size for group in coupling.groups} == {
        "w_q:1.0": 3,
        "w_q:1.1": 4,
        "w_v:1.1": 4,
    }
    assert all(group.inexact is None for group in coupling.groups)


@pytest.mark.parametrize(
    ("equation", "shapes", "expected"),
    [
        ("ij,jk->ik", [(2, 3), (3, 5)], 2 * 3 * 5),
        ("bij,bjk->bik", [(7, 2, 3), (7, 3, 5)], 7 * 2 * 3 * 5),
        ("...ij,...jk", [(1, 2, 3), (7, 3, 5)], 7 * 2 * 3 * 5),
        ("ij,ik->jk", [(1, 3), (1, 5)], 3 * 5),
        ("ij->ji", [(2, 3)], 0),
        ("ij->", [(2, 3)], 0),
        ("ij,ij->ij", [(2, 3), (2, 3)], 0),
        ("i,j->ij", [(2,), (3,)], 0),
        ("ijl,jk->ik", [(2, 3, 4), (3, 5)], 2 * 3 * 5),
        ("iij,jk->ik", [(2, 2, 3), (3, 5)], 2 * 3 * 5),
        ("ij,jk,kl->il", [(2, 3), (3, 5), (5, 7)], 2 * 3 * 5 + 2 * 5 * 7),
        ("ij,ij,jk->ik", [(2, 3), (2, 3), (3, 5)], 2 * 3 * 5),
    ],
)
def test_products_are_counted_where_something_is_contracted(
    equation: str, shapes: list[tuple[int, ...]], expected: int
) -> None:
    names = tuple(f"x{i}" for i in range(len(shapes)))
    node = Node("", "Einsum", "", 12, names, ("y",), {"equation": equation})
    assert Einsum().macs(node, shapes, []) == expected
