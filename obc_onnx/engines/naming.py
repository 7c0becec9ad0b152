"""Which nodes of a file an engine means by what it calls a layer."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING

import onnx

from obc_onnx.engines.engine import Layer

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence
    from pathlib import Path


class Naming:
    """Finds nodes by their names and by those of their outputs.

    Args:
        model: The file.
    """

    def __init__(self, model: Path) -> None:
        self._nodes = list(onnx.load(model, load_external_data=False).graph.node)
        named = Counter(node.name for node in self._nodes)
        self._keys: dict[str, str] = {}
        for node in self._nodes:
            key = _key_of(node)
            names = [name for name in node.output if name]
            names += [node.name] if node.name and named[node.name] == 1 else []
            for name in names:
                self._keys.setdefault(name, key)

    def key(self, name: str) -> str | None:
        """Return the first output of the node of a name; None where none has it."""
        return self._keys.get(name)

    def layers(self, times: Iterable[tuple[Sequence[str], float]]) -> list[Layer]:
        """Say which nodes layers compute, those included that no layer names.

        A node that was fused with others often goes without its name. It counts to the layer that
        its value reaches first; where it reaches none, to the one that its inputs come from.

        Args:
            times: For each layer, names of nodes that it has, and milliseconds.
        """
        found = [(self._known(names), ms) for names, ms in times]
        owner = {key: place for place, (keys, _) in enumerate(found) for key in keys}
        readers: dict[str, list[str]] = {}
        for node in self._nodes:
            for name in node.input:
                readers.setdefault(name, []).append(_key_of(node))
        for node in reversed(self._nodes):
            ahead = [reader for name in node.output for reader in readers.get(name, ())]
            _join(owner, _key_of(node), ahead)
        for node in self._nodes:
            _join(owner, _key_of(node), [self._keys[n] for n in node.input if n in self._keys])
        members: dict[int, list[str]] = {}
        for node in self._nodes:
            key = _key_of(node)
            if key in owner:
                members.setdefault(owner[key], []).append(key)
        return [Layer(tuple(members.get(place, ())), ms) for place, (_, ms) in enumerate(found)]

    def _known(self, names: Sequence[str]) -> list[str]:
        return [key for key in map(self.key, names) if key is not None]


def _key_of(node: onnx.NodeProto) -> str:
    return next((name for name in node.output if name), "")


def _join(owner: dict[str, int], key: str, neighbours: Iterable[str]) -> None:
    """Let a node that no layer has be of the layer of the first neighbour that is of one."""
    places = [owner[neighbour] for neighbour in neighbours if neighbour in owner]
    if places:
        owner.setdefault(key, places[0])
