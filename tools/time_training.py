"""Time a step of fine-tuning and measure its memory, against explicit compressors.

    python tools/time_training.py [--net resnet20] [--net vgg11] [--target 0.5] [--target 0.25]
        [--size 32] [--round-to 8] [--batch-size 128] [--accumulate 4] [--steps 10] [--rounds 3]
        [--json FILE]

`turns` says how it measures. Nets have random weights, and every width shrinks alike, to a multiple
of what `--round-to` says. The ways are:

- ours: equivalent pruning in weight space, at the pruned width;
- plain: the pruned network without compressors;
- explicit: convolutions at full width, between 1x1 convolutions that compress and decompress, as
  the paper draws it;
- original: the network before pruning.

Before any timing, ours and explicit have to give equal outputs and equal gradients of all weights.
Besides seconds there are the multiplications and additions of a step, forward and backward, as
torch counts them: they depend neither on the machine nor on its load.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import warnings
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, fx, nn
from torch.nn import functional
from torch.utils.flop_counter import FlopCounterMode
from turns import FLAG, best, measure, take_turns

from obc_onnx.coupling.analysis import Clock, analyse
from obc_onnx.equivalent.network import EquivalentTwin
from obc_onnx.graph.model import Graph
from obc_onnx.ops.catalogue import DEFAULT_RULES
from obc_onnx.ops.conv import conv
from obc_onnx.surgery.cut import Cut
from obc_onnx.twin.tensors import lay_channels_last

if TYPE_CHECKING:
    from collections.abc import Callable

    from obc_onnx.coupling.model import Coupling, Keep

WAYS = ("ours", "plain", "explicit", "original")
N_CLASSES = 10
VGG_WIDTHS = ((64,), (128,), (256, 256), (512, 512), (512, 512))
EXPORT_OPTIONS: dict[str, Any] = {
    "input_names": ["input"],
    "dynamic_axes": {"input": {0: "batch"}},
    "training": torch.onnx.TrainingMode.PRESERVE,
    "do_constant_folding": False,
    "dynamo": False,
}
WARM_UP = 2
CLOSE = 1e-9
"""Largest error of a gradient in float64, over its largest value."""


class Block(nn.Module):
    """Two 3x3 convolutions with norms, and a shortcut."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.body = nn.Sequential(
            *conv_norm(inputs, outputs, 3, stride), nn.ReLU(), *conv_norm(outputs, outputs, 3)
        )
        same = inputs == outputs and stride == 1
        self.short = (
            nn.Identity() if same else nn.Sequential(*conv_norm(inputs, outputs, 1, stride))
        )

    def forward(self, x: Tensor) -> Tensor:
        """Add the shortcut."""
        return functional.relu(self.body(x) + self.short(x))


def conv_norm(inputs: int, outputs: int, kernel: int, stride: int = 1) -> list[nn.Module]:
    """Make a convolution without bias, and a norm."""
    return [
        nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2, bias=False),
        nn.BatchNorm2d(outputs),
    ]


def resnet20() -> nn.Module:
    """Make ResNet-20 of the CIFAR kind."""
    layers: list[nn.Module] = [*conv_norm(3, 16, 3), nn.ReLU()]
    inputs = 16
    for outputs in (16, 32, 64):
        for block in range(3):
            layers.append(Block(inputs, outputs, 1 if block or outputs == 16 else 2))  # noqa: PLR2004
            inputs = outputs
    return nn.Sequential(
        *layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(inputs, N_CLASSES)
    )


def vgg11() -> nn.Module:
    """Make VGG-11 with norms and one linear layer."""
    layers: list[nn.Module] = []
    inputs = 3
    for widths in VGG_WIDTHS:
        for outputs in widths:
            layers += [*conv_norm(inputs, outputs, 3), nn.ReLU()]
            inputs = outputs
        layers.append(nn.MaxPool2d(2))
    return nn.Sequential(
        *layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(inputs, N_CLASSES)
    )


NETS: dict[str, Callable[[], nn.Module]] = {"resnet20": resnet20, "vgg11": vgg11}


def coupling_of(net: str, size: int) -> Coupling:
    """Export a net with random weights as it is deployed, norms kept, and analyse it."""
    with torch.random.fork_rng():
        torch.manual_seed(0)  # noqa: TID251 - layers draw their first weights globally
        module = NETS[net]().eval()
    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of the exporter, about itself
        path = Path(folder) / "model.onnx"
        torch.onnx.export(module, (torch.zeros(2, 3, size, size),), path, **EXPORT_OPTIONS)
        graph = Graph.load(path)
    return analyse(graph, None, DEFAULT_RULES, Clock())[0]


def uniform(coupling: Coupling, target: float, step: int) -> Keep:
    """Keep the same share of every group, the largest at which the MACs are within the target.

    Widths are the nearest multiples of `step`.
    """
    full = coupling.macs({})
    for share in np.arange(1.0, 0.0, -0.01):
        keep = {
            g.dim: np.arange(g.size) < step * max(round(share * g.size / step), 1)
            for g in coupling.groups
        }
        if coupling.macs(keep) <= target * full:
            return keep
    message = f"no uniform width leaves {target:g} of the MACs"
    raise ValueError(message)


class Explicit(nn.Module):
    """A dense layer at its full width between a decompressor and a compressor."""

    def __init__(self, call: fx.Node, weight: Tensor, matrices: list[Tensor | None]) -> None:
        super().__init__()
        self.call, self.settings = call.target, dict(call.kwargs)
        self.weight = nn.Parameter(weight.detach().clone())
        self.c, self.d = (
            None if matrix is None else nn.Parameter(matrix.detach().clone()) for matrix in matrices
        )

    def forward(self, x: Tensor, bias: Tensor | None = None) -> Tensor:
        """Go through the three layers."""
        if self.call is conv:
            x = x if self.d is None else functional.conv2d(x, self.d.T[:, :, None, None])
            y = conv(x, self.weight, bias, **self.settings)
            return y if self.c is None else functional.conv2d(y, self.c[:, :, None, None])
        wide = x if self.d is None else x @ self.d
        y = functional.linear(wide, self.weight, bias)
        return y if self.c is None else y @ self.c.T


def explicit(student: EquivalentTwin) -> fx.GraphModule:
    """Put explicit layers in the place of every weight that a student re-parametrises."""
    twin = student.twin
    layers = {target: (index, dict(placed)) for target, index, placed in student._targets}  # noqa: SLF001
    for node in list(twin.graph.nodes):
        weight = node.args[1] if node.op == "call_function" and len(node.args) > 1 else None
        if not isinstance(weight, fx.Node) or weight.op != "get_attr":
            continue
        if weight.target not in layers:
            continue
        index, placed = layers[weight.target]
        full = student.full[index]
        matrices = [
            student.maps[placed[axis]](torch.eye(full.shape[axis]), 0) if axis in placed else None
            for axis in (0, 1)
        ]
        name = f"explicit_{index}"
        twin.add_module(name, Explicit(node, full, matrices))
        with twin.graph.inserting_before(node):
            made = twin.graph.call_module(name, (node.args[0], *node.args[2:]))
        node.replace_all_uses_with(made)
        twin.graph.erase_node(node)
    twin.graph.eliminate_dead_code()
    twin.delete_all_unused_submodules()
    twin.recompile()
    return twin


def student_of(coupling: Coupling, keep: Keep, *, recombine: bool = True) -> EquivalentTwin:
    """Make what is trained."""
    return EquivalentTwin(Cut.of(coupling, keep), recombine=recombine)


def make(way: str, coupling: Coupling, keep: Keep) -> nn.Module:
    """Make the network that a way trains."""
    if way == "original":
        return student_of(coupling, {}, recombine=False)
    if way == "explicit":
        return explicit(student_of(coupling, keep))
    return student_of(coupling, keep, recombine=way == "ours")


def check_equal(coupling: Coupling, keep: Keep, size: int) -> None:
    """Compare outputs and gradients of ours with those of explicit layers.

    Raises:
        ValueError: They differ.
    """
    ours = student_of(coupling, keep)
    other = explicit(student_of(coupling, keep))
    x, labels = batch(8, size)
    for module in (ours, other):
        module.double().train()
        torch.autograd.backward(functional.cross_entropy(module(x.double())[0], labels))
    layers = {n: m for n, m in other.named_modules() if isinstance(m, Explicit)}
    for name, layer in layers.items():
        own = ours.full[int(name.removeprefix("explicit_"))].grad
        assert own is not None
        error = float((own - layer.weight.grad).abs().max() / own.abs().max())
        if error > CLOSE:
            message = f"the gradient of {name} differs by {error:g}"
            raise ValueError(message)


def batch(n: int, size: int) -> tuple[Tensor, Tensor]:
    """Draw pictures and labels."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(n, 3, size, size, generator=generator)
    return x, torch.randint(0, N_CLASSES, (n,), generator=generator)


def run_steps(
    module: nn.Module, pictures: tuple[Tensor, Tensor], steps: int, accumulate: int = 1
) -> None:
    """Train for some steps of so many passes, as the engine does."""
    x, labels = pictures
    learned = [p for p in module.parameters() if p.requires_grad]
    optimizer = torch.optim.SGD(learned, 1e-3, momentum=0.9)
    module.train()
    for _ in range(steps):
        optimizer.zero_grad()
        with module.hold_weights() if isinstance(module, EquivalentTwin) else nullcontext():
            for _ in range(accumulate):
                loss = functional.cross_entropy(module(x)[0], labels)
                torch.autograd.backward(loss / accumulate)
        optimizer.step()


def compare(
    net: str, target: float, coupling: Coupling, options: argparse.Namespace
) -> dict[str, Any]:
    """Measure all ways for one net and target, and print a row for each."""
    more = ["--net", net, "--target", str(target)]
    found = take_turns(WAYS, options.rounds, more)
    least = best(found)
    keep = uniform(coupling, target, options.round_to)
    counts = {way: work_of_step(make(way, coupling, keep), options) for way in WAYS}
    for way, figures in least.items():
        ratio = figures["seconds"] / least["plain"]["seconds"]
        each = 1e3 * figures["seconds"] / options.steps
        work = counts[way] / counts["plain"]
        print(
            f"| {net} | {target:g} | {way} | {each:.0f} | {ratio:.2f} | {work:.2f} "
            f"| {figures['mib']:.0f} |"
        )
    return found


def work_of_step(module: nn.Module, options: argparse.Namespace) -> int:
    """Count the multiplications and additions of a step."""
    with FlopCounterMode(display=False) as counter:
        run_steps(module, batch(options.batch_size, options.size), 1, options.accumulate)
    return int(counter.get_total_flops())


def main() -> None:
    """Run from the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--net", action="append", choices=NETS, help="May be repeated.")
    parser.add_argument("--target", action="append", type=float, help="May be repeated.")
    parser.add_argument("--size", type=int, default=32, help="Of pictures, in pixels.")
    parser.add_argument("--round-to", type=int, default=1, help="Widths are multiples of this.")
    parser.add_argument("--batch-size", type=int, default=128)
    parser.add_argument("--accumulate", type=int, default=1, help="Passes of a step.")
    parser.add_argument("--steps", type=int, default=10)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--json", type=Path, help="Also write the figures to this file.")
    parser.add_argument(FLAG, choices=WAYS, help=argparse.SUPPRESS)
    options = parser.parse_args()
    nets, targets = options.net or list(NETS), options.target or [0.5, 0.25]
    if options.measure:
        coupling = coupling_of(nets[-1], options.size)
        module = make(options.measure, coupling, uniform(coupling, targets[-1], options.round_to))
        lay_channels_last(module)  # as training does on a CPU
        run_steps(module, batch(2, options.size), WARM_UP)
        pictures = batch(options.batch_size, options.size)
        measure(lambda: run_steps(module, pictures, options.steps, options.accumulate))
        return
    couplings = {net: coupling_of(net, options.size) for net in nets}
    for coupling in couplings.values():
        for target in targets:
            check_equal(coupling, uniform(coupling, target, options.round_to), options.size)
    print("| net | MACs left | way | ms per step | over plain | its MACs | MiB above the start |")
    print("|---|---:|---|---:|---:|---:|---:|")
    found = {
        f"{net} {target}": compare(net, target, coupling, options)
        for net, coupling in couplings.items()
        for target in targets
    }
    if options.json:
        options.json.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
