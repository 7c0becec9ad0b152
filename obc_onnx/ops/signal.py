"""Transforms of signals: nothing can be removed from the axes that they transform."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, ClassVar

from obc_onnx.ops.base.dtypes import torch_dtype
from obc_onnx.ops.base.rule import Call, FreeOfMacs, Rule
from obc_onnx.ops.base.value import Value
from obc_onnx.ops.frozen import Frozen

if TYPE_CHECKING:
    from torch import Tensor

    from obc_onnx.graph.node import Node
    from obc_onnx.ops.base.context import CoupleContext, ForwardContext

_AXIS_AS_INPUT_SINCE = 20
_FLOAT = 1


class MelWeights(Frozen):
    """Filters whose positions are frequencies."""

    op_types = ("MelWeightMatrix",)
    why = "frequencies"


class Window(Frozen):
    """Windows for transforms; every value depends on how many there are."""

    _coefficients: ClassVar[dict[str, tuple[float, ...]]] = {
        "BlackmanWindow": (0.42, 0.5, 0.08),
        "HammingWindow": (25 / 46, 21 / 46),
        "HannWindow": (0.5, 0.5),
    }
    op_types = tuple(_coefficients)
    why = "the positions of a window"

    def forward(self, context: ForwardContext) -> Call:
        """Add up cosines."""
        node = context.node
        constants = {
            "coefficients": self._coefficients[node.op_type],
            "periodic": bool(node.integer("periodic", 1)),
            "data_type": node.integer("output_datatype", _FLOAT),
        }
        return Call(window, constants)


class Det(FreeOfMacs):
    """Determinants of the matrices along the last two axes."""

    op_types = ("Det",)

    def couple(self, context: CoupleContext) -> list[Value]:
        """Freeze the matrices, and hand on the axes before them."""
        x = context.value(0)
        context.freeze(x.axes[-2:], "a matrix")
        return [Value(x.axes[:-2])]

    def forward(self, context: ForwardContext) -> Call:  # noqa: ARG002
        """Run torch.det."""
        import torch

        return Call(torch.det)


class DFT(FreeOfMacs):
    """Fourier transform of one axis; the last one holds real and imaginary parts."""

    op_types = ("DFT",)

    def couple(self, context: CoupleContext) -> list[Value]:
        """Freeze the transformed axis and the parts; hand on the others."""
        x = context.value(0)
        at = self._axis(context.node, context.integers(2))
        if at is None:
            context.freeze(x.axes, "an axis that may be transformed")
            return [context.opaque("an axis that may be transformed")]
        frozen = {at % len(x.axes), len(x.axes) - 1}
        context.freeze([x.axes[i] for i in frozen], "a transformed axis")
        made = context.opaque("a transformed axis").axes
        return [Value(tuple(made[i] if i in frozen else axis for i, axis in enumerate(x.axes)))]

    def forward(self, context: ForwardContext) -> Call:
        """Run torch's transform for real or complex numbers."""
        node = context.node
        axis, length = self._axis(node, context.integers(2)), context.integers(1)
        constants = {
            "axis": 0 if axis is None else axis,  # which the computed one replaces
            "length": None if length is None else length[0],
            "inverse": bool(node.integer("inverse", 0)),
            "onesided": bool(node.integer("onesided", 0)),
        }
        computed = [slot for slot in context.given(1, 2) if context.arrays[slot] is None]
        return Call(dft, constants, (0, *computed))

    @staticmethod
    def _axis(node: Node, given: tuple[int, ...] | None) -> int | None:
        """Return the transformed axis, None where it is computed."""
        if node.opset < _AXIS_AS_INPUT_SINCE:
            return node.integer("axis", 1)
        if not node.has_input(2):
            return -2
        return None if given is None else given[0]


class STFT(FreeOfMacs):
    """Fourier transforms of overlapping frames; inputs signal, step, window and length."""

    op_types = ("STFT",)
    held = (2,)

    def couple(self, context: CoupleContext) -> list[Value]:
        """Hand on the batch, and freeze all else."""
        signal, fixed = context.value(0), context.opaque("a frame").axes
        others = [] if context.optional(2) is None else context.value(2).axes
        context.freeze((*signal.axes[1:], *others), "a frame")
        return [Value((signal.axes[0], *fixed[1:]))]

    def forward(self, context: ForwardContext) -> Call:
        """Cut frames and transform them."""
        step, length = context.integers(1), context.integers(3)
        constants = {
            "step": 0 if step is None else step[0],  # which the computed one replaces
            "length": None if length is None else length[0],
            "onesided": bool(context.node.integer("onesided", 1)),
        }
        computed = [slot for slot in context.given(1, 3) if context.arrays[slot] is None]
        return Call(stft, constants, (*context.given(0, 2), *computed))


def window(
    size: Tensor, *, coefficients: tuple[float, ...], periodic: bool, data_type: int
) -> Tensor:
    """Make a window as a sum of cosines. Source: the ONNX operator pages of the windows.

    Args:
        size: How many positions, a scalar.
        coefficients: Of the cosines of 0, 1, 2... periods, which have alternating signs.
        periodic: Whether the position after the last one would be the first of the next period.
        data_type: The ONNX type of the result.
    """
    import torch

    n_steps = int(size) if periodic else max(int(size) - 1, 1)
    angle = 2 * math.pi / n_steps * torch.arange(int(size), device=size.device)
    total = torch.zeros_like(angle)
    for k, coefficient in enumerate(coefficients):
        total = total + (-1) ** k * coefficient * torch.cos(k * angle)
    return total.to(torch_dtype(data_type))


def dft(
    x: Tensor,
    computed_length: Tensor | None = None,
    computed_axis: Tensor | None = None,
    *,
    axis: int,
    length: int | None,
    inverse: bool,
    onesided: bool,
) -> Tensor:
    """Compute DFT. Source: the ONNX operator page of DFT.

    Args:
        x: Real or complex numbers, which lie along the last axis as one or two parts.
        computed_length: A length that is only known as the model runs.
        computed_axis: An axis likewise.
        axis: What is transformed, counted with that of the parts.
        length: To which the axis is cropped or padded; None for what it is.
        inverse: Whether to go back from frequencies.
        onesided: Whether the half of the frequencies is left out that follows from the other.
    """
    import torch

    at = (axis if computed_axis is None else int(computed_axis)) % x.ndim
    length = length if computed_length is None else int(computed_length)
    signal = x[..., 0] if x.shape[-1] == 1 else torch.view_as_complex(x.contiguous())
    if inverse and onesided:
        real: Tensor = torch.fft.irfft(signal, length, at)
        return real.unsqueeze(-1)
    halved = onesided and not signal.is_complex()
    transform = torch.fft.rfft if halved else torch.fft.ifft if inverse else torch.fft.fft
    spectrum: Tensor = transform(signal, length, at)
    if onesided and not halved:  # of complex numbers, ONNX Runtime gives as many frequencies
        spectrum = spectrum.narrow(at, 0, spectrum.shape[at] // 2 + 1)
    return torch.view_as_real(spectrum.resolve_conj())


def stft(
    signal: Tensor,
    computed_step: Tensor | None = None,
    window: Tensor | None = None,
    computed_length: Tensor | None = None,
    *,
    step: int,
    length: int | None,
    onesided: bool,
) -> Tensor:
    """Compute STFT. Source: the ONNX operator page of STFT.

    Args:
        signal: Shape [n, n_samples, 1 or 2].
        computed_step: A step that is only known as the model runs.
        window: What frames are multiplied by, shape [length].
        computed_length: A length likewise.
        step: From frame to frame.
        length: Of a frame; where it is left out, that of the window or else of the signal.
        onesided: As in `dft`.
    """
    if computed_length is not None:
        length = int(computed_length)
    if length is None:
        length = signal.shape[1] if window is None else window.shape[0]
    frames = signal.unfold(1, length, step if computed_step is None else int(computed_step))
    frames = frames if window is None else frames * window
    parts = frames.transpose(2, 3)
    return dft(parts, axis=2, length=None, inverse=False, onesided=onesided)


RULES: tuple[Rule, ...] = (DFT(), Det(), MelWeights(), STFT(), Window())
