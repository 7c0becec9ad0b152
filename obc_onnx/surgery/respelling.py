"""Write the numbers that nodes spell out again, as the coupling's patches say.

Who else uses what is there keeps it: an initializer with other users gets a new one beside it, and
nodes that put numbers together for others too are copied.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from obc_onnx.axes.expressions import mask
from obc_onnx.graph.shapes import ElementTypes

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from obc_onnx.coupling.model import Coupling, Keep
    from obc_onnx.coupling.patch import Patch
    from obc_onnx.graph.model import Graph

    Place = tuple[str, int]
    Changes = list[tuple[Patch, list[int | float]]]


def respell(coupling: Coupling, keep: Keep, arrays: dict[str, NDArray[Any]]) -> Graph:
    """Return the graph with other weights and with the numbers that then have to be spelled.

    Args:
        coupling: Of the graph to change.
        keep: For each dim that loses units, which units stay.
        arrays: New arrays of initializers by name.
    """
    writer = _Writer(coupling, arrays)
    changes: dict[Place, Changes] = {}
    for patch in coupling.patches:
        numbers = patch.new_numbers(keep)
        if numbers is None:
            continue
        if isinstance(patch.place, str):
            writer.set_attribute(patch.key, patch.place, numbers[0] if patch.scalar else numbers)
        else:
            start = patch.route[0] if patch.route else (patch.key, patch.place)
            changes.setdefault(start, []).append((patch, numbers))
        for name in patch.drops:
            writer.set_attribute(patch.key, name, None)
    for place, found in changes.items():
        writer.write_all(place, found)
    for renumbering in coupling.renumberings:
        kept = mask(renumbering.source, keep)
        if not kept.all():
            after = np.cumsum(kept) - 1
            picked = np.asarray(renumbering.picked, np.int64)
            numbers = after[picked[kept[picked]]].tolist()
            writer.write((renumbering.node.key, renumbering.slot), numbers, resized=True)
    return writer.graph()


class _Writer:
    """Changes under construction, as `Graph.edit` takes them."""

    def __init__(self, coupling: Coupling, arrays: dict[str, NDArray[Any]]) -> None:
        self._coupling, self._graph = coupling, coupling.graph
        self._arrays = dict(arrays)
        self._types = ElementTypes(coupling.graph)
        self._attributes: dict[str, dict[str, Any]] = {}
        self._rewired: dict[Place, str] = {}
        self._copied: dict[str, tuple[str, dict[int, str]]] = {}
        self._names: dict[Any, str] = {}  # of new values, by what they hold: equal ones are one

    def graph(self) -> Graph:
        values = self._coupling.values.items()
        shape_arithmetic = {name for name, value in values if value.numbers is not None}
        return self._graph.edit(
            self._arrays, self._attributes, self._rewired, self._copied, shape_arithmetic
        )

    def set_attribute(self, key: str, name: str, value: Any) -> None:
        self._attributes.setdefault(key, {})[name] = value

    def write(self, place: Place, numbers: list[Any], *, resized: bool = False) -> None:
        """Give an input slot other numbers; `resized` where there may be fewer of them."""
        name = self._read(place)
        new = self._array(name, numbers, resized=resized)
        if name not in self._graph.initializers or self._graph.is_shared(name):
            name = self._fresh(name or "sizes", place[0])
            self._rewired[place] = name
        self._arrays[name] = new

    def write_all(self, start: Place, changes: Changes) -> None:
        """Make all changes to the numbers that one input slot reads."""
        crossed = {self._read(place) for patch, _ in changes for place in patch.route}
        if any(self._graph.is_shared(name) for name in crossed):
            self._rewired[start] = self._copy(start, changes, 1)
            return
        for patch, numbers in changes:
            self.write((patch.key, int(patch.place)), numbers)

    def _copy(self, place: Place, changes: Changes, depth: int) -> str:
        """Copy what an input slot reads, with other numbers; return the name of the copy.

        Args:
            place: The slot.
            changes: What has to change above it.
            depth: How many slots of each change's route have been passed, with this one.
        """
        name, (first, numbers) = self._read(place), changes[0]
        if len(first.route) < depth:
            return self._new_constant(place, name, numbers)
        above: dict[Place, Changes] = {}
        for patch, due in changes:
            route = (*patch.route, (patch.key, int(patch.place)))
            above.setdefault(route[depth], []).append((patch, due))
        inputs = {
            slot: self._copy((key, slot), due, depth + 1) for (key, slot), due in above.items()
        }
        source = self._graph.producers[name].key
        content = (source, *sorted(inputs.items()))
        if content not in self._names:
            self._names[content] = self._fresh(name, place[0])
            self._copied[self._names[content]] = (source, inputs)
        return self._names[content]

    def _new_constant(self, place: Place, name: str, numbers: list[Any]) -> str:
        content = (place, tuple(numbers))
        if content not in self._names:
            self._names[content] = self._fresh(name, place[0])
            self._arrays[self._names[content]] = self._array(name, numbers)
        return self._names[content]

    def _read(self, place: Place) -> str:
        return self._graph.producers[place[0]].read_at(place[1])

    def _fresh(self, name: str, key: str) -> str:
        return self._graph.fresh_name(f"{name}.{key}", {*self._arrays, *self._copied})

    def _array(self, name: str, numbers: list[Any], *, resized: bool = False) -> NDArray[Any]:
        """Return numbers as an array of the type and shape of what they stand for."""
        old = self._graph.initializers.get(name)
        if old is not None:
            array = np.asarray(numbers, old.dtype)
            return array.reshape((-1, *old.shape[1:]) if resized else old.shape)
        if not name:
            return np.asarray(numbers, np.int64)
        return np.asarray(numbers, self._types[name]).reshape(self._coupling.values[name].shape)
