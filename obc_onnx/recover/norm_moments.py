"""Moments of what stands behind a batch norm, without data.

A norm that was trained says how its outputs are spread: z_i has mean beta_i and deviation gamma_i.
Units whose filters are alike see alike inputs, so that the correlation of two is taken to be the
cosine of their filters. What an activation makes of such z is measured on draws.

Averages over positions behind the activation are passed over: they keep its means, and lessen all
variances. What an activation gives of an average is not known.

Source: least squares from these moments, as in CORP from data; the means alone are the data-free
bias correction of Nagel et al., arXiv 1906.04721.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import torch
from torch import fx

from obc_onnx.ops.base.effect import Effect
from obc_onnx.ops.elementwise import PositionByPosition
from obc_onnx.twin.build import derived_twin
from obc_onnx.twin.probes import calls_of

if TYPE_CHECKING:
    from collections.abc import Mapping

    from numpy.typing import NDArray

    from obc_onnx.axes.expressions import Dim
    from obc_onnx.coupling.model import Coupling
    from obc_onnx.equivalent.starts import Reader
    from obc_onnx.graph.node import Node
    from obc_onnx.ops.base.rule import ChannelNorm
    from obc_onnx.saliency.reads import Read
    from obc_onnx.twin.module import TorchTwin

    Numbers = NDArray[np.float64]

_DRAWS = 16384
_PASSED = Effect.AVERAGES | Effect.IN_ORDER


class _Source(NamedTuple):
    """Where what a reader is given comes from: a norm of a layer's outputs, and activations."""

    norm: str
    scale: str
    bias: str
    filters: Numbers
    activations: tuple[Node, ...]


def norm_moments(
    coupling: Coupling, readers: Mapping[Read, Reader]
) -> dict[tuple[Read, Dim], Numbers]:
    """Find the second moments of what weights read, wherever a batch norm tells them.

    Args:
        coupling: Of the original.
        readers: Weights that read units which are cut.
    Returns:
        As for `start_from`; what comes from a sum or a depthwise filter is not among it.
    """
    found = {}
    twin = None
    for read, reader in readers.items():
        slot = reader.role.tap.slot if reader.role.tap is not None else 0
        for dim in reader.positions:
            source = _source(coupling, reader.role.node.inputs[slot], dim)
            if source is None:
                continue
            twin = twin or derived_twin(coupling.graph, coupling, frozen=True)
            rows = _activated(coupling, source, twin)
            if rows is not None:
                found[read, dim] = rows.T @ rows
    return found


def _source(coupling: Coupling, value: str, dim: Dim) -> _Source | None:
    """Walk back from a value to the norm that its units come from."""
    graph = coupling.graph
    activations: list[Node] = []
    while value in graph.producers:
        node = graph.producers[value]
        computed = [name for name in node.inputs if name and name not in graph.initializers]
        norm = coupling.rules.channel_norm(node)
        if norm is not None:
            filters = _filters(coupling, node, norm, dim)
            if filters is None or len(computed) > 1 or not norm.stored:
                return None
            scale, bias = node.inputs[norm.scale], node.inputs[norm.bias]
            return _Source(node.key, scale, bias, filters, tuple(reversed(activations)))
        if isinstance(coupling.rules.find(node), PositionByPosition) and len(computed) == 1:
            activations.append(node)
            value = computed[0]
        elif coupling.rules.effect(node) & _PASSED and not activations:
            value = node.inputs[0]
        else:
            return None
    return None


def _filters(coupling: Coupling, node: Node, norm: ChannelNorm, dim: Dim) -> Numbers | None:
    """Return the weights of each unit, shape [units, weights], each of length 1."""
    layer = coupling.graph.producers.get(node.inputs[0])
    if layer is None or coupling.axes[node.inputs[norm.scale]] != (dim,):
        return None
    for role in coupling.roles:
        name = role.node.inputs[role.slot]
        if role.node.key != layer.key or role.kind != "writes" or not role.mixes:
            continue
        if name in coupling.graph.initializers and coupling.axes[name][role.axis] == dim:
            array = coupling.graph.initializers[name].astype(np.float64)
            rows = np.moveaxis(array, role.axis, 0).reshape(dim.size, -1)
            lengths = np.linalg.norm(rows, axis=1, keepdims=True)
            unit: Numbers = rows / np.where(lengths > 0, lengths, 1.0)
            return unit
    return None


def _activated(coupling: Coupling, source: _Source, twin: TorchTwin) -> Numbers | None:
    """Draw what the activations make of normed units, and a one, shape [draws, units + 1]."""
    arrays = coupling.graph.initializers
    gamma, beta = (arrays[name].astype(np.float64) for name in (source.scale, source.bias))
    values, vectors = np.linalg.eigh(source.filters @ source.filters.T)
    root = vectors * np.sqrt(np.clip(values, 0.0, None))
    noise = np.random.default_rng(0).standard_normal((_DRAWS, len(root)))
    z = torch.from_numpy(beta + gamma * (noise @ root.T)).float()
    z = z.reshape(*z.shape, *[1] * (len(coupling.shapes[source.norm]) - z.ndim))
    calls = calls_of(twin)
    for node in source.activations:
        made = _apply(calls[node.key], z, twin)
        if made is None or made.shape != z.shape:
            return None
        z = made
    rows: Numbers = z.reshape(_DRAWS, -1).double().numpy()
    return np.concatenate([rows, np.ones((_DRAWS, 1))], 1) if np.isfinite(rows).all() else None


@torch.no_grad()
def _apply(call: fx.Node, z: torch.Tensor, twin: TorchTwin) -> torch.Tensor | None:
    """Run a call on draws; None where something else than them and constants enters."""
    inputs = call.all_input_nodes
    if sum(node.op != "get_attr" for node in inputs) != 1:
        return None

    def value(node: fx.Node) -> torch.Tensor:
        found: torch.Tensor = getattr(twin, str(node.target)) if node.op == "get_attr" else z
        return found

    assert callable(call.target)
    made: torch.Tensor = call.target(*fx.node.map_arg(call.args, value), **call.kwargs)
    return made
