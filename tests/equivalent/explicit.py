"""Equivalent pruning as the paper draws it: 1x1 layers between full-width layers, by hand in torch."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import torch
from nets import with_grads
from torch.nn import functional as fn

from obc_onnx.equivalent.maps import Mix
from obc_onnx.twin.tensors import initializer_name

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import Tensor

    from obc_onnx.equivalent.network import EquivalentTwin


class Parts(NamedTuple):
    """What an equivalent twin trains.

    Attributes:
        full: Original weights by name.
        mixes: Matrices [kept, full] of a weight's axis, as `weight:0`; those that a bias uses too
            are listed with the weight only.
        sliced: What is trained at its pruned size, by name.
    """

    full: dict[str, Tensor]
    mixes: dict[str, list[Tensor]]
    sliced: dict[str, Tensor]


def parts_of(student: EquivalentTwin) -> Parts:
    """Name the student's own parameters."""
    full: dict[str, Tensor] = {}
    mixes: dict[str, list[Tensor]] = {}
    seen: set[int] = set()
    for target, index, placed in sorted(student._targets, key=lambda entry: -len(entry[2])):
        name = initializer_name(target)
        full[name] = student.full[index]
        for axis, i in placed:
            found = [m.matrix for m in student.maps[i].modules() if isinstance(m, Mix)]
            if not seen.issuperset(map(id, found)):
                mixes[f"{name}:{axis}"] = found
            seen.update(map(id, found))
    own = student.twin.named_parameters()
    return Parts(full, mixes, {initializer_name(n): p for n, p in own if p.requires_grad})


def copy_of(parts: Parts) -> Parts:
    """Copy every tensor into a leaf of its own."""
    mixes = {k: list(with_grads(dict(enumerate(m))).values()) for k, m in parts.mixes.items()}
    return Parts(with_grads(parts.full), mixes, with_grads(parts.sliced))


def compress(x: Tensor, matrix: Tensor) -> Tensor:
    """Put a compressor behind a convolution."""
    return fn.conv2d(x, matrix[:, :, None, None])


def decompress(x: Tensor, matrix: Tensor) -> Tensor:
    """Put a decompressor in front of a convolution."""
    return fn.conv2d(x, matrix.T[:, :, None, None])


def head(p: Parts, x: Tensor) -> Tensor:
    d = decompress(x.mean((2, 3), keepdim=True), p.mixes["fc:1"][0])
    return fn.linear(d.flatten(1), p.full["fc"], p.sliced["fc_b"])


def conv(p: Parts, name: str, x: Tensor, bias: str = "", padding: int = 0) -> Tensor:
    """Convolve at full width, with a decompressor before and a compressor behind, if there."""
    if f"{name}:1" in p.mixes:
        x = decompress(x, p.mixes[f"{name}:1"][0])
    y = fn.conv2d(x, p.full[name], p.full[bias] if bias else None, padding=padding)
    return compress(y, p.mixes[f"{name}:0"][0])


def norm(p: Parts, x: Tensor) -> Tensor:
    """Normalise by the batch, at pruned width."""
    return fn.batch_norm(x, None, None, p.sliced["scale"], p.sliced["shift"], training=True)


def norm_net(p: Parts, x: Tensor) -> Tensor:
    n1 = norm(p, conv(p, "w1", x, "b1"))
    return head(p, conv(p, "w2", n1.clamp(min=0) + p.sliced["slope"] * n1.clamp(max=0)))


def residual_net(p: Parts, x: Tensor) -> Tensor:
    s = conv(p, "w0", x, "b0")
    t1 = conv(p, "w1", s, "b1", padding=1).tanh()
    r = s + norm(p, conv(p, "w2", t1, "b2"))
    return head(p, conv(p, "w3", r).tanh() * conv(p, "w4", r, padding=1).tanh())


def concat_net(p: Parts, x: Tensor) -> Tensor:
    t1, t2 = conv(p, "w1", x).tanh(), conv(p, "w2", x).sigmoid()
    wide = decompress(torch.cat((t1, t2, t1), 1), torch.block_diag(*p.mixes["w3:1"]))
    return head(p, compress(fn.conv2d(wide, p.full["w3"]), p.mixes["w3:0"][0]))


def flatten_net(p: Parts, x: Tensor) -> Tensor:
    wide = decompress(conv(p, "w1", x, "b1").tanh(), p.mixes["fc:1"][0])
    return fn.linear(wide.flatten(1), p.full["fc"], p.sliced["fc_b"])


def depthwise_net(p: Parts, x: Tensor) -> Tensor:
    w2, b2 = p.sliced["w2"], p.sliced["b2"]
    t1 = conv(p, "w1", x).tanh()
    return head(p, conv(p, "w3", fn.conv2d(t1, w2, b2, padding=1, groups=len(w2)).tanh()))


def selection(p: Parts, kept: Tensor) -> Tensor:
    """Make the matrix that only selects blocks."""
    return torch.eye(len(kept), dtype=torch.float64)[kept]


def grouped_net(p: Parts, x: Tensor, kept_blocks: Tensor) -> Tensor:
    """Blocks of the dense layers mix; those of the grouped one are selected."""
    blocks = selection(p, kept_blocks)
    t1 = compress(fn.conv2d(x, p.full["w1"]), torch.kron(*p.mixes["w1:0"])).tanh()
    wide = decompress(t1, torch.kron(blocks, p.mixes["w2:1"][0]))
    c2 = fn.conv2d(wide, p.full["w2"], p.full["b2"], padding=1, groups=3)
    t2 = compress(c2, torch.kron(blocks, p.mixes["w2:0"][0])).tanh()
    c3 = fn.conv2d(decompress(t2, torch.kron(*p.mixes["w3:1"])), p.full["w3"])
    return head(p, compress(c3, p.mixes["w3:0"][0]))


def transposed_net(p: Parts, x: Tensor, kept_blocks: Tensor) -> Tensor:
    blocks = selection(p, kept_blocks)
    t1 = compress(fn.conv2d(x, p.full["w1"]), torch.kron(*p.mixes["w1:0"])).tanh()
    wide = decompress(t1, torch.kron(blocks, p.mixes["w2:0"][0]))
    c2 = fn.conv_transpose2d(wide, p.full["w2"], p.full["b2"], stride=2, groups=3)
    t2 = compress(c2, torch.kron(blocks, p.mixes["w2:1"][0])).tanh()
    c3 = fn.conv2d(decompress(t2, torch.kron(*p.mixes["w3:1"])), p.full["w3"])
    return head(p, compress(c3, p.mixes["w3:0"][0]))


def shared_weight_net(p: Parts, x: Tensor) -> Tensor:
    t1 = conv(p, "w", conv(p, "w0", x).tanh(), "b1", padding=1).tanh()
    return head(p, conv(p, "w", t1, "b2"))


def shared_bias_net(p: Parts, x: Tensor) -> Tensor:
    """Each weight has a copy of the bias of its own."""
    t1, t2 = conv(p, "w1", x, "b").tanh(), conv(p, "w2", x, "b.c2").sigmoid()
    return head(p, conv(p, "w3", t1) * conv(p, "w4", t2))


def gemm_net(p: Parts, x: Tensor) -> Tensor:
    """Compressors and decompressors are plain products here: C is x M^T, D is x M."""
    m = {key: matrices[0] for key, matrices in p.mixes.items()}
    t1 = (fn.linear(x, p.full["w1"], p.full["b1"]) @ m["w1:0"].T).tanh()
    c2 = 0.5 * (t1 @ m["w2:0"]) @ p.full["w2"] + 2.0 * p.full["b2"]
    t2 = (c2 @ m["w2:1"].T).tanh()
    t3 = (fn.linear(t2 @ m["w3:1"], p.full["w3"]) @ m["w3:0"].T).tanh()
    return fn.linear(t3 @ m["fc:1"], p.full["fc"])


def matmul_net(p: Parts, x: Tensor) -> Tensor:
    m = {key: matrices[0] for key, matrices in p.mixes.items()}
    t1 = (x @ p.full["w1"] @ m["w1:1"].T + p.sliced["b1"]).tanh()
    t2 = (t1 @ m["w2:0"] @ p.full["w2"] @ m["w2:1"].T + p.sliced["b2"]).tanh()
    return (t2 @ m["fc:0"] @ p.full["fc"]).mean(1)


def tied_net(p: Parts, x: Tensor) -> Tensor:
    """One weight serves twice, so what is C in one use is D in the other."""
    m = {key: matrices[0] for key, matrices in p.mixes.items()}
    t0 = (fn.linear(x, p.full["w0"]) @ m["w0:0"].T).tanh()
    t1 = (fn.linear(t0 @ m["w:1"], p.full["w"], p.full["b1"]) @ m["w:0"].T).tanh()
    t2 = ((t1 @ m["w:0"] @ p.full["w"] + p.full["b2"]) @ m["w:1"].T).tanh()
    return fn.linear(t2 @ m["fc:1"], p.full["fc"])


EXPLICIT: dict[str, Callable[[Parts, Tensor], Tensor]] = {
    "norm": norm_net,
    "residual": residual_net,
    "concat": concat_net,
    "flatten": flatten_net,
    "depthwise": depthwise_net,
    "shared weight": shared_weight_net,
    "shared bias": shared_bias_net,
    "gemm": gemm_net,
    "matmul right": matmul_net,
    "tied": tied_net,
}
BLOCKED: dict[str, Callable[[Parts, Tensor, Tensor], Tensor]] = {
    "grouped": grouped_net,
    "transposed blocks": transposed_net,
}
