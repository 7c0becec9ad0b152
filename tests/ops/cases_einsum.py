"""Rows for Einsum."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ops.cases import Case

if TYPE_CHECKING:
    from collections.abc import Mapping

    Shape = tuple[int, ...]

TOKENS = {"X": (5, 4)}
HEADS = {"X": (5, 6)}
SQUARE = {"X": (16,)}
SPLIT, MERGED = [0, 0, 2, 3], [0, 0, -1]


def einsum(
    name: str,
    equation: str,
    operands: str = "X, W",
    weights: Mapping[str, Shape] | None = None,
    *,
    inputs: Mapping[str, Shape] | None = None,
    before: str = "",
    after: str = "",
    **options: object,
) -> Case:
    """Make a row; where nodes follow, the Einsum makes E."""
    made = "E" if after else "Y"
    text = f'{before} {made} = Einsum<equation="{equation}">({operands}) {after}'
    options = {"last": True, **options}
    return Case(name, "Einsum", text, inputs or TOKENS, weights or {}, **options)


WEIGHTS = (
    einsum("weights_right", "bti,io->bto", weights={"W": (4, 6)}),
    einsum("weights_transposed", "bti,oi->bto", weights={"W": (6, 4)}),
    einsum("weights_left", "oi,bti->bto", "W, X", {"W": (6, 4)}),
    einsum("opset12", "bti,io->bto", weights={"W": (4, 6)}, opset=12),
    einsum("opset26", "bti,io->bto", weights={"W": (4, 6)}, opset=26),
    einsum("static_batch", "bti,io->bto", weights={"W": (4, 6)}, batch=3),
    einsum("features_first", "bchw,oc->bohw", weights={"W": (6, 4)}, inputs={"X": (4, 5, 3)},
           last=False),
    einsum("written_heads", "bti,ihd->bthd", weights={"W": (4, 2, 3)},
           after="Y = Reshape(E, to)", constants={"to": MERGED}),
    einsum("read_heads", "bthd,hdo->bto", "R, W", {"W": (2, 3, 4)}, inputs=HEADS,
           before="R = Reshape(X, to)", constants={"to": SPLIT}),
    einsum("weights_of_each_head", "bthd,hdo->btho", "R, W", {"W": (2, 3, 4)}, inputs=HEADS,
           before="R = Reshape(X, to)", after="Y = Reshape(E, back)",
           constants={"to": SPLIT, "back": MERGED}),
    einsum("new_heads", "bti,hio->bhto", weights={"W": (2, 4, 3)},
           after="T = Transpose<perm=[0,2,1,3]>(E) Y = Reshape(T, to)",
           constants={"to": MERGED}),
    einsum("computed_weights", "bti,io->bto", "X, T", {"W": (6, 4)}, before="T = Transpose(W)"),
    einsum("reshaped_weights", "bti,io->bto", "X, T", {"W": (4, 2, 3)},
           before="T = Reshape(W, to)", constants={"to": [4, 6]}),
    einsum("one_row", "i,bti->bt", "W, X", {"W": (4,)}),
    einsum("scale", "bti,i->bti", weights={"W": (4,)}),
    einsum("scale_and_sum", "bti,ti->bi", weights={"W": (5, 4)}),
    einsum("outer", "bti,o->btio", weights={"W": (3,)}, after="Y = Reshape(E, to)",
           constants={"to": MERGED}),
    einsum("summed_weights", "bti,ij->bti", weights={"W": (4, 3)}),
    einsum("shared_weights", "bti,ij->btj", "A, W", {"W": (4, 4)}, before="A = MatMul(X, W)"),
)  # fmt: skip
EQUATIONS = (
    einsum("implicit", "abi,io", weights={"W": (4, 6)}),
    einsum("implicit_order", "bai,io", weights={"W": (4, 6)}),
    einsum("implicit_upper_case", "baI,Io", weights={"W": (4, 6)}),
    einsum("upper_and_lower_case", "iIA,Aa->iIa", weights={"W": (4, 6)}),
    einsum("spaces", " b t i , i o -> b t o ", weights={"W": (4, 6)}),
    einsum("ellipsis", "...i,io->...o", weights={"W": (4, 6)}),
    einsum("ellipsis_implicit", "...i,io", weights={"W": (4, 6)}),
    einsum("ellipsis_inside", "b...i,io->b...o", weights={"W": (4, 6)}, inputs={"X": (2, 5, 4)}),
    einsum("ellipsis_of_features", "b...,b...->b...", "X, X"),
    einsum("ellipsis_of_nothing", "...bti,...io->...bto", weights={"W": (4, 6)}),
    einsum("ellipsis_in_all", "...ij,...kj->...ik", "X, Z", inputs={"X": (5, 4), "Z": (6, 4)}),
    einsum("ellipsis_broadcast", "...ij,...kj->...ik", "X, Z",
           inputs={"X": (1, 5, 4), "Z": (3, 6, 4)}),
    einsum("ellipsis_of_weights", "...ij,...jk->...ik", weights={"W": (1, 4, 6)}),
    einsum("letters_that_the_ellipsis_must_not_take", "...ba,ac->...bc", weights={"W": (4, 6)}),
)  # fmt: skip
ONE_OPERAND = (
    einsum("transpose", "bti->tbi", "X"),
    einsum("identity", "abc", "X"),
    einsum("sum_of_steps", "bti->bi", "X"),
    einsum("sum_of_features", "bti->bt", "X"),
    einsum("sum_of_all_but_the_batch", "bti->b", "X"),
    einsum("sum_of_all", "bti->", "X", batch=3),
    einsum("diagonal", "bii->bi", "R", inputs=SQUARE, before="R = Reshape(X, to)",
           constants={"to": [0, 4, 4]}, prunes=False),
    einsum("trace", "bii->b", "R", inputs=SQUARE, before="R = Reshape(X, to)",
           constants={"to": [0, 4, 4]}, prunes=False),
    einsum("trace_implicit", "bii", "R", inputs=SQUARE, before="R = Reshape(X, to)",
           constants={"to": [0, 4, 4]}, prunes=False),
)  # fmt: skip
COMPUTED = (
    einsum("contracted", "bti,bsi->bts", "X, Z", inputs={"X": (5, 4), "Z": (6, 4)}),
    einsum("contracted_with_itself", "bti,bsi->bts", "X, X"),
    einsum("contracted_steps", "bti,bto->bio", "X, Z", inputs={"X": (5, 4), "Z": (5, 6)},
           after="Y = Flatten(E)"),
    einsum("two_contracted", "bti,bti->b", "X, Z", inputs={"X": (5, 4), "Z": (5, 4)}),
    einsum("elementwise", "bti,bti->bti", "X, Z", inputs={"X": (5, 4), "Z": (5, 4)}),
    einsum("outer_of_computed", "bi,bo->bio", "X, Z", inputs={"X": (4,), "Z": (3,)},
           after="Y = Flatten(E)"),
    einsum("diagonal_of_one", "bii,bio->bo", "R, Z", inputs={"X": (16,), "Z": (4, 3)},
           before="R = Reshape(X, to)", constants={"to": [0, 4, 4]}),
    einsum("diagonal_of_weights", "bti,ii->bti", weights={"W": (4, 4)}, prunes=False),
    einsum("crossed", "bti,bit->bti", "X, T", before="T = Transpose<perm=[0,2,1]>(X)"),
    einsum("left_alone", "bti,bs->bts", "X, Z", inputs={"X": (5, 4), "Z": (6,)}),
)  # fmt: skip
BROADCAST = (  # torch sums what it contracts alone, since the other operand has one position
    einsum("one_row_of_weights", "bti,io->bto", weights={"W": (1, 6)}, counted=False),
    einsum("one_feature", "bti,io->bto", weights={"W": (4, 6)}, inputs={"X": (5, 1)},
           counted=False),
    einsum("one_scale", "bti,ti->bti", weights={"W": (1, 4)}),
    einsum("one_step", "bti,bti->bti", "X, Z", inputs={"X": (1, 4), "Z": (5, 4)}),
    einsum("one_matrix", "bti,bio->bto", weights={"W": (1, 4, 6)}),
)  # fmt: skip
MORE_OPERANDS = (
    einsum("bilinear", "bi,ijo,bj->bo", "X, W, Z", {"W": (4, 5, 6)},
           inputs={"X": (4,), "Z": (5,)}),
    einsum("low_rank", "bti,ij,jo->bto", "X, V, W", {"V": (4, 2), "W": (2, 6)}),
    einsum("three_computed", "bti,bsi,bso->bto", "X, Z, U",
           inputs={"X": (5, 4), "Z": (6, 4), "U": (6, 3)}),
    einsum("one_letter_in_all", "bti,bsi,i->bts", "X, X, W", {"W": (4,)}),
    einsum("letter_that_stays", "bti,ij,tj->btj", "X, W, V", {"W": (4, 6), "V": (5, 6)}),
    einsum("two_weights_along_one_letter", "bti,ij,ij->btj", "X, W, V", {"W": (4, 6), "V": (4, 6)}),
    einsum("four", "bti,ij,bsj,so->bto", "X, W, Z, V", {"W": (4, 3), "V": (6, 2)},
           inputs={"X": (5, 4), "Z": (6, 3)}),
    einsum("broadcast_of_three", "bti,bti,ti->bti", "X, Z, W", {"W": (5, 1)},
           inputs={"X": (1, 4), "Z": (5, 4)}),
)  # fmt: skip
PROJECTED = (
    "Q = MatMul(X, W_q) K = MatMul(X, W_k) V = MatMul(X, W_v)"
    " Q4 = Reshape(Q, split) K4 = Reshape(K, split) V4 = Reshape(V, split)"
)
PROJECTIONS = {"W_q": (4, 6), "W_k": (4, 6), "W_v": (4, 6)}
LAID_OUT = {"split": SPLIT, "merged": MERGED}
ATTENTION = (
    einsum(
        "attention", "bqhd,bkhd->bhqk", "Q4, K4", PROJECTIONS, before=PROJECTED,
        after='A = Softmax(E) O = Einsum<equation="bhqk,bkhd->bqhd">(A, V4)'
        " Y = Reshape(O, merged)",
        constants=LAID_OUT,
    ),
    einsum(
        "attention_heads_first", "bhqd,bhkd->bhqk", "QH, KH", PROJECTIONS,
        before=f"{PROJECTED} QH = Transpose<perm=[0,2,1,3]>(Q4) KH = Transpose<perm=[0,2,1,3]>(K4)"
        " VH = Transpose<perm=[0,2,1,3]>(V4)",
        after='A = Softmax(E) O = Einsum<equation="bhqk,bhkd->bhqd">(A, VH)'
        " OT = Transpose<perm=[0,2,1,3]>(O) Y = Reshape(OT, merged)",
        constants=LAID_OUT,
    ),
    einsum(
        "attention_all_by_einsum", "bti,ihd->bthd", "X, W_q",
        {"W_q": (4, 2, 3), "W_k": (4, 2, 3), "W_v": (4, 2, 3), "W_o": (2, 3, 4)},
        after='K = Einsum<equation="bti,ihd->bthd">(X, W_k)'
        ' V = Einsum<equation="bti,ihd->bthd">(X, W_v)'
        ' S = Einsum<equation="bqhd,bkhd->bhqk">(E, K) A = Softmax(S)'
        ' O = Einsum<equation="bhqk,bkhd->bqhd">(A, V) Y = Einsum<equation="bqhd,hdo->bqo">(O, W_o)',
    ),
)  # fmt: skip
CASES = (
    *WEIGHTS,
    *EQUATIONS,
    *ONE_OPERAND,
    *COMPUTED,
    *BROADCAST,
    *MORE_OPERANDS,
    *ATTENTION,
)
