"""Initializers in torch: what they are called there, and how their numbers are held."""

from __future__ import annotations

import keyword
import re
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote

import numpy as np
import torch
from torch import fx, nn

from obc_onnx.graph.widening import BFLOAT16

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from numpy.typing import NDArray

    from obc_onnx.graph.node import Port

_HELD_AS: tuple[tuple[str, type[np.generic]], ...] = (
    ("int2", np.int8), ("int4", np.int8), ("uint2", np.uint8), ("uint4", np.uint8),
    ("uint16", np.int32), ("uint32", np.int64), ("uint64", np.int64),
    ("float4", np.float32), ("float8", np.float32),
)  # fmt: skip
_IN_NUMPY = frozenset({torch.float16, torch.float32, torch.float64})
_UNSAFE = re.compile(r'[%."\\\x00-\x1f\x7f-\x9f\u2028\u2029]')
_RESERVED = frozenset(vars(fx.GraphModule(nn.Module(), fx.Graph()))) | frozenset(
    [*dir(fx.GraphModule), "write_to", "self"]
)


def parameter_name(initializer: str) -> str:
    """Return the name of an initializer in the twin, as in a URL.

    Escaped are dots, which torch forbids, and what would break out of a string in the twin's code.
    A leading percent sign marks names that a module has for itself; `initializer_name` reverses it.
    """
    name = _UNSAFE.sub(_escaped, initializer)
    taken = not name or name in _RESERVED or hasattr(nn.Module, name) or keyword.iskeyword(name)
    return f"%{name}" if taken else name


def module_name(label: str) -> str:
    """Return a name for a submodule of the twin that no initializer has: it holds a space.

    `parameter_name` puts a percent sign that escapes nothing only before names of attributes.
    """
    return f"% {label}"


def _escaped(match: re.Match[str]) -> str:
    return "".join(f"%{byte:02X}" for byte in match[0].encode())


def initializer_name(parameter: str) -> str:
    """Return the initializer that a parameter or buffer of the twin stands for."""
    bare = (
        parameter[1:] if re.match(r"%(?![0-9A-F]{2})", parameter) or parameter == "%" else parameter
    )
    return unquote(bare)


def to_tensor(array: NDArray[Any], *, shared: bool = False) -> torch.Tensor:
    """Return an array as a tensor; bfloat16 is an extension type in numpy.

    What torch cannot compute with, such as integers of 4 bits, is held in a larger type.

    Args:
        array: The numbers.
        shared: Whether the tensor may lie in the memory of the array: then neither is to be
            written to. Else it is a copy.
    """
    larger = next((kind for name, kind in _HELD_AS if array.dtype.name.startswith(name)), None)
    # torch takes no memory that is marked as read-only, nor runs backwards through any
    stays = shared and array.flags.c_contiguous and array.flags.writeable
    numbers = np.asarray(array, larger) if stays else np.array(array, larger)
    if array.dtype.name == BFLOAT16:
        return torch.from_numpy(numbers.view(np.int16)).view(torch.bfloat16)
    return torch.from_numpy(numbers)


def as_inputs(
    ports: Sequence[Port], feed: Mapping[str, NDArray[Any]], device: torch.device | str = "cpu"
) -> list[torch.Tensor]:
    """Return what a twin is called with: arrays by name as tensors, in the order of the inputs."""
    arrays = [feed[port.name] for port in ports]
    tensors = [
        to_tensor(array) if array.dtype.name == BFLOAT16 else torch.from_numpy(array)
        for array in arrays
    ]
    return [tensor.to(device) for tensor in tensors]


def lay_channels_last(network: nn.Module) -> None:
    """Let weights of four axes lie channels last in memory, where convolutions are faster.

    Module.to refuses networks that have weights of five axes.
    """
    for parameter in network.parameters():
        if parameter.ndim == 4:  # noqa: PLR2004 - outputs, inputs, height, width
            parameter.data = parameter.data.contiguous(memory_format=torch.channels_last)


def wide(tensor: torch.Tensor) -> torch.Tensor:
    """Return floats of at least 32 bits, in which sums do not overflow."""
    return tensor.to(torch.promote_types(tensor.dtype, torch.float32))


def to_array(tensor: torch.Tensor, dtype: np.dtype[Any]) -> NDArray[Any]:
    """Copy a tensor into an array of the given type."""
    host = tensor.detach().cpu()
    if host.dtype.is_floating_point and host.dtype not in _IN_NUMPY:
        host = host.float()
    return np.array(host.numpy(), dtype=dtype)
