"""Compute gradients of every form of convolution; a program, as torch may end the process.

    python tests/conv_gradients.py THREADS

It compares float32 with float64, which torch computes by other code, and prints every form whose
gradients differ.
"""

from __future__ import annotations

import sys
from itertools import product
from typing import TYPE_CHECKING, Any

import torch

from obc_onnx.ops.conv import conv, conv_transpose

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from torch import Tensor

    Form = tuple[bool, int, tuple[int, ...], int, int, tuple[int, int], int]

CHANNELS = ((3, 2), (4, 8), (5, 5), (6, 3), (6, 4), (6, 8), (12, 16))
KERNELS = {1: ((1,), (3,)), 2: ((1, 1), (1, 3), (3, 3)), 3: ((1, 1, 1), (1, 2, 2))}
LAYOUTS = {2: torch.channels_last, 3: torch.channels_last_3d}
SIZES = {1: (32,), 2: (16, 16), 3: (6, 6, 6)}
TOLERANCE = 1e-3


def last(x: Tensor) -> Tensor:
    """Lay channels last in memory."""
    if x.ndim == 3:
        return x.transpose(1, 2).contiguous().transpose(1, 2)
    return x.contiguous(memory_format=LAYOUTS[x.ndim - 2])


def gradients(
    run: Callable[[Tensor, Tensor], Tensor], tensors: list[Tensor], *, layout: bool
) -> list[Tensor]:
    """Return the gradients of the sum of squares."""
    given = [tensor.clone().requires_grad_() for tensor in tensors]
    x, w = (last(tensor) if layout else tensor for tensor in given)
    run(x, w).square().sum().backward()
    return [tensor.grad.double() for tensor in given if tensor.grad is not None]


def forms() -> Iterator[Form]:
    """Yield: transposed, axes, kernel, stride, pads, channels, groups."""
    for transposed, rank in product((False, True), KERNELS):
        for kernel, stride, pad in product(KERNELS[rank], (1, 2, 3), (0, 1)):
            for inputs, outputs in CHANNELS:
                common = [g for g in (1, 2, inputs) if inputs % g == outputs % g == 0]
                for groups in dict.fromkeys(common):
                    yield transposed, rank, kernel, stride, pad, (inputs, outputs), groups


def wrong(form: Form, generator: torch.Generator) -> bool:
    """Say whether gradients are others than in float64, with channels first."""
    transposed, rank, kernel, stride, pad, (inputs, outputs), groups = form
    options: dict[str, Any] = {
        "strides": (stride,) * rank,
        "dilations": (1,) * rank,
        "groups": groups,
        "pads": (pad,) * 2 * rank,
        "auto_pad": "NOTSET",
    }
    if transposed:
        options |= {"output_padding": (0,) * rank, "output_shape": None}
    shape = (inputs, outputs // groups) if transposed else (outputs, inputs // groups)
    sizes = (8, inputs, *SIZES[rank]), (*shape, *kernel)
    tensors = [torch.randn(size, generator=generator) for size in sizes]

    def run(x: Tensor, w: Tensor) -> Tensor:
        return (conv_transpose if transposed else conv)(x, w, None, **options)

    found = gradients(run, tensors, layout=True)
    expected = gradients(run, [tensor.double() for tensor in tensors], layout=False)
    return any(
        not (own - other).abs().max() <= TOLERANCE * other.abs().max()
        for own, other in zip(found, expected, strict=True)
    )


def main() -> None:
    """Try every form."""
    torch.set_num_threads(int(sys.argv[1]))
    generator = torch.Generator().manual_seed(0)
    tried = list(forms())
    lines = [f"wrong gradients of {form}\n" for form in tried if wrong(form, generator)]
    sys.stdout.write("".join([*lines, f"{len(tried)} forms tried\n"]))


if __name__ == "__main__":
    main()
