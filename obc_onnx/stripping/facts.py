"""What a graph itself proves of its values: which units are constant there, and which are alike.

A unit is constant at a value where what it owns there is the same whatever the model is given. It
may differ from place to place. Two units are alike where they own the same numbers in every run.

No operator is named. Where a dim that may lose units passes a node, and is not contracted there,
what a unit owns behind the node is computed from what it owns in front of it: else units could not
be removed. A product is run on zeros and ones, to see which of its results anything reaches. All
other nodes end what is known.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from obc_onnx.axes.expressions import leaves
from obc_onnx.errors import ModelError
from obc_onnx.graph.session import run_node
from obc_onnx.ops.base.effect import Effect
from obc_onnx.stripping.units import alike, any_of, comparable, owned, rows, uniform

if TYPE_CHECKING:
    from collections.abc import Collection

    from numpy.typing import NDArray

    from obc_onnx.graph.node import Node
    from obc_onnx.ops.base.rule import Rule
    from obc_onnx.stripping.scenes import Scene, Scenes

    Flags = NDArray[np.bool_]
    Labels = NDArray[np.int64]
    Place = tuple[str, str]


class Facts:
    """What is known of the units of every exact group, at every value that they lie on.

    Args:
        scenes: Runs of the graph.
    """

    def __init__(self, scenes: Scenes) -> None:
        self.scenes, self.coupling = scenes, scenes.coupling
        self.graph, self.rules = self.coupling.graph, self.coupling.rules
        self._overridable = self.graph.overridable
        self.groups = [group for group in self.coupling.groups if self._is_exact(group.name)]
        self._sizes = {group.name: group.size for group in self.groups}
        self._on = _places(scenes, self._sizes.keys())
        self._contracted = {
            (role.node.key, group.name)
            for group in self.groups
            for role in group.members
            if role.kind == "reads"
        }
        self._constant: dict[Place, Flags] = {}
        self._alike: dict[Place, Labels] = {}
        self._zero: dict[Place, Flags] = {}
        for name in self.graph.initializers.keys() & self._on.keys():
            self._start(name)
        for node in self.graph.nodes:
            self._pass(node)

    def constant(self, name: str, group: str) -> Flags:
        """Say which units are constant at a value, shape [n_units]."""
        nothing = np.zeros(self._sizes[group], np.bool_)
        return self._constant.get((name, group), nothing)

    def alike(self, name: str, group: str) -> Labels:
        """Number units so that those that are alike at a value have equal numbers."""
        apart = np.arange(self._sizes[group])
        return self._alike.get((name, group), apart)

    def zero(self, name: str, group: str) -> Flags:
        """Say which units are constant at a value, and zero."""
        place = (name, group)
        if place not in self._zero:
            found = self.constant(name, group).copy()
            for scene in self.scenes.runs if found.any() else ():
                array = scene.numbers[name]
                is_float = np.issubdtype(array.dtype, np.floating)
                found &= ~self._any(scene, name, group, array != 0) if is_float else False
            self._zero[place] = found
        return self._zero[place]

    def elements(self, scene: Scene, name: str, flags: dict[str, Flags]) -> Flags:
        """Say which elements of a value flagged units own, in the shape of the value.

        Args:
            scene: A run.
            name: Of the value.
            flags: For groups that lie on it, units.
        """
        axes = scene.coupling.axes[name]
        found = np.zeros([axis.size for axis in axes], np.bool_)
        for group, units in flags.items():
            found |= owned(axes, scene.dim(group), units)
        return found

    def is_on(self, name: str, group: str) -> bool:
        """Say whether a group lies on a value."""
        return group in self._on.get(name, ())

    def is_fixed(self, name: str) -> bool:
        """Say whether a value is an initializer that no caller may set."""
        return name in self.graph.initializers and name not in self._overridable

    def is_constant(self, name: str) -> bool:
        """Say whether all of a value is constant."""
        if name in self.graph.initializers:
            return self.is_fixed(name)
        value = self.coupling.values.get(name)
        return value is not None and value.constant and not self._overridable

    def _is_exact(self, group: str) -> bool:
        found = [scene.coupling.by_name.get(group) for scene in self.scenes.runs]
        return all(own is not None and own.inexact is None for own in found)

    def _any(self, scene: Scene, name: str, group: str, elements: Flags) -> Flags:
        return any_of(scene.coupling.axes[name], scene.dim(group), elements)

    def _start(self, name: str) -> None:
        """Note what an initializer holds."""
        if not self.is_fixed(name):
            return
        axes, array = self.coupling.axes[name], self.graph.initializers[name]
        for group in self._on[name]:
            dim = self.scenes.runs[0].dim(group)
            self._constant[name, group] = np.ones(dim.size, np.bool_)
            if comparable(axes, dim):
                table = rows(axes, dim, array)
                self._alike[name, group] = alike([row.tobytes() for row in table])

    def _pass(self, node: Node) -> None:
        """Note what is known behind a node."""
        rule = self.rules.find(node)
        if rule is None or node.captures or not rule.repeats:
            return
        outputs = [name for name in node.outputs if self._on.get(name)]
        reached: dict[str, Flags] = {}
        if outputs and (rule.is_linear(node) or rule.is_scaled(node)):
            reached = self._unreached(node, rule, outputs[0])
        for name in outputs:
            for group in self._on[name]:
                found = reached.get(group)
                if (node.key, group) not in self._contracted:
                    local = self._passed(node, group)
                    found = local if found is None else found | local
                    self._alike[name, group] = self._alike_behind(node, name, group)
                if found is not None:
                    self._constant[name, group] = found & self._finite(name, group)

    def _passed(self, node: Node, group: str) -> Flags:
        """Say which units are constant behind a node since what it computes them from is."""
        effect, given = self.rules.effect(node), [name for name in node.inputs if name]
        own = [name for name in given if self.is_on(name, group)]
        found = np.full(self._sizes[group], bool(own))
        for name in own:
            found &= self.constant(name, group)
        for name in given if Effect.JOINS not in effect else ():
            if name in own or self.is_constant(name):
                continue
            chooses = Effect.MOVES in effect and name != given[0]
            found &= self._uniform(given[0], group) if chooses else False
        if Effect.MULTIPLIES in effect:
            for name in own:
                found |= self.zero(name, group)
        norm = self.rules.channel_norm(node)
        if norm is not None and self.is_on(node.inputs[norm.scale], group):
            bias = node.inputs[norm.bias]
            stays = self.is_constant(bias) | self.constant(bias, group)
            found |= self.zero(node.inputs[norm.scale], group) & stays
        return found

    def _alike_behind(self, node: Node, output: str, group: str) -> Labels:
        """Number units by what a node computes them from."""
        own = [name for name in node.inputs if self.is_on(name, group)]
        axes, dim = self.coupling.axes, self.scenes.runs[0].dim(group)
        if not own or not all(comparable(axes[name], dim) for name in (*own, output)):
            return np.arange(dim.size)
        columns = [self.alike(name, group).tolist() for name in own]
        return alike(list(zip(*columns, strict=True)))

    def _unreached(self, node: Node, rule: Rule, output: str) -> dict[str, Flags]:
        """Say which units of a product's output no input of the model reaches.

        A term of the sum varies where one factor does and no factor is zero. So the product is run
        on ones where a factor may vary, and where the others may be other than zero.
        """
        slots = [s for s in range(len(node.inputs)) if node.has_input(s) and s != rule.bias_slot]
        found = {}
        for group in self._on[output]:
            found[group] = self._bias_constant(node, rule, group)
        for scene in self.scenes.runs:
            patterns = [self._pattern(scene, node.inputs[slot]) for slot in slots]
            for place, (varies, _) in enumerate(patterns):
                if not varies.any():
                    continue
                factors = [nonzero for _, nonzero in patterns]
                factors[place] = varies
                ones = {s: f.astype(np.float32) for s, f in zip(slots, factors, strict=True)}
                try:
                    sums = run_node(self.graph, node, ones)
                except ModelError:
                    return {}
                for group in found:
                    found[group] &= ~self._any(scene, output, group, sums != 0)
        return found

    def _pattern(self, scene: Scene, name: str) -> tuple[Flags, Flags]:
        """Say which elements of a factor may vary, and which may be other than zero."""
        shape = [axis.size for axis in scene.coupling.axes[name]]
        if self.is_constant(name):
            known = scene.numbers.get(name)
            nonzero = np.ones(shape, np.bool_) if known is None else known != 0
            return np.zeros(shape, np.bool_), nonzero
        constant = {group: self.constant(name, group) for group in self._on[name]}
        known = self.elements(scene, name, constant)
        nonzero = ~known
        if known.any():
            nonzero |= scene.numbers[name] != 0
        return ~known, nonzero

    def _bias_constant(self, node: Node, rule: Rule, group: str) -> Flags:
        slot = rule.bias_slot
        if slot is None or not node.has_input(slot) or self.is_constant(node.inputs[slot]):
            return np.ones(self._sizes[group], np.bool_)
        return self.constant(node.inputs[slot], group).copy()

    def _uniform(self, name: str, group: str) -> Flags:
        """Say which constant units are one number at a value."""
        found = self.constant(name, group).copy()
        for scene in self.scenes.runs if found.any() else ():
            array = scene.numbers[name]
            found &= uniform(scene.coupling.axes[name], scene.dim(group), array)
        return found

    def _finite(self, name: str, group: str) -> Flags:
        """Say of which units all numbers are known and finite: others cannot be made up for."""
        found = np.ones(self._sizes[group], np.bool_)
        for scene in self.scenes.runs:
            if name not in scene.numbers:
                return ~found
            array = scene.numbers[name]
            if array.dtype.kind == "f" and not np.isfinite(array).all():
                found &= ~self._any(scene, name, group, ~np.isfinite(array))
        return found


def _places(scenes: Scenes, groups: Collection[str]) -> dict[str, list[str]]:
    """List the groups that lie on each value, in all runs."""
    found: dict[str, list[str]] = {}
    for scene in scenes.runs:
        names = {scene.dim(group): group for group in groups}
        for name, axes in scene.coupling.axes.items():
            own = dict.fromkeys(names[d] for e in axes for d in leaves(e) if d in names)
            found[name] = [group for group in found.get(name, own) if group in own]
    return found
