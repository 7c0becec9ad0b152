"""Time the twin against the same network written in torch, and against ONNX Runtime.

    python tools/time_twin.py [--repeats 20] [--batch 16] [--device cpu] [--json FILE]

Both networks have the same weights and see the same batch, in turns. What counts is the least time
of each. To export the networks:

    pip install onnxscript
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from obc_onnx.graph.model import Graph
from obc_onnx.graph.session import Session
from obc_onnx.graph.shapes import infer_shapes, input_shapes
from obc_onnx.ops.catalogue import DEFAULT_RULES
from obc_onnx.twin.build import build_twin

if TYPE_CHECKING:
    from collections.abc import Callable

IMAGE = (3, 32, 32)
N_CLASSES = 10
WARM_UP = 2


class Block(nn.Module):
    """Two convolutions with a shortcut that pads channels with zeros."""

    def __init__(self, n_in: int, n_out: int) -> None:
        super().__init__()
        self.stride = n_out // n_in
        self.conv1 = nn.Conv2d(n_in, n_out, 3, self.stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(n_out)
        self.conv2 = nn.Conv2d(n_out, n_out, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(n_out)
        self.added = (n_out - n_in) // 2

    def forward(self, x: Tensor) -> Tensor:
        """Add what the convolutions make to the input."""
        y = self.bn2(self.conv2(self.bn1(self.conv1(x)).relu()))
        if self.added:
            x = nn.functional.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, self.added, self.added))
        added: Tensor = (x + y).relu()
        return added


class ResNet20(nn.Module):
    """The network for small images of "Deep Residual Learning for Image Recognition"."""

    def __init__(self) -> None:
        super().__init__()
        widths = [16, 16, 16, 16, 32, 32, 32, 64, 64, 64]
        self.stem = nn.Sequential(nn.Conv2d(3, 16, 3, 1, 1, bias=False), nn.BatchNorm2d(16))
        self.body = nn.Sequential(*(Block(a, b) for a, b in pairwise(widths)))
        self.head = nn.Linear(64, N_CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        """Classify images."""
        logits: Tensor = self.head(self.body(self.stem(x).relu()).mean((2, 3)))
        return logits


class Layer(nn.Module):
    """Attention and a feed-forward network, each behind a norm."""

    def __init__(self, width: int, n_heads: int) -> None:
        super().__init__()
        self.n_heads = n_heads
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.mlp = nn.Sequential(
            nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width)
        )

    def forward(self, x: Tensor) -> Tensor:
        """Mix positions, then features."""
        n, t, width = x.shape
        parts = self.qkv(self.norm1(x)).reshape(n, t, 3, self.n_heads, width // self.n_heads)
        q, k, v = parts.permute(2, 0, 3, 1, 4)
        shares = (q @ k.transpose(2, 3) * (width // self.n_heads) ** -0.5).softmax(-1)
        x = x + self.out((shares @ v).transpose(1, 2).reshape(n, t, width))
        mixed: Tensor = x + self.mlp(self.norm2(x))
        return mixed


class ViT(nn.Module):
    """A vision transformer for small images."""

    def __init__(self, width: int = 192, n_layers: int = 6, n_heads: int = 3) -> None:
        super().__init__()
        self.patch = nn.Conv2d(3, width, 4, 4)
        self.position = nn.Parameter(0.02 * torch.randn(1, 64, width))
        self.layers = nn.Sequential(*(Layer(width, n_heads) for _ in range(n_layers)))
        self.norm, self.head = nn.LayerNorm(width), nn.Linear(width, N_CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        """Classify images."""
        tokens = self.patch(x).flatten(2).transpose(1, 2) + self.position
        logits: Tensor = self.head(self.norm(self.layers(tokens)).mean(1))
        return logits


def twin_of(network: nn.Module, sample: Tensor) -> tuple[nn.Module, Graph]:
    """Export a network, and build the twin of what comes out."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.onnx"
        torch.onnx.export(network, (sample,), path, dynamo=True, verbose=False, optimize=False)
        graph = Graph.load(path)
    return build_twin(graph, infer_shapes(graph, input_shapes(graph)), DEFAULT_RULES), graph


def times(runs: dict[str, Callable[[], Any]], repeats: int, device: str) -> dict[str, float]:
    """Return the least milliseconds of each run; they take turns."""
    least = dict.fromkeys(runs, float("inf"))
    for i in range(WARM_UP + repeats):
        for name, run in runs.items():
            start = time.perf_counter()
            run()
            if device != "cpu":
                torch.accelerator.synchronize()
            if i >= WARM_UP:
                least[name] = min(least[name], 1e3 * (time.perf_counter() - start))
    return least


def measure(name: str, network: nn.Module, options: argparse.Namespace) -> dict[str, Any]:
    """Time one network."""
    x = torch.randn(options.batch, *IMAGE, generator=torch.Generator().manual_seed(0))
    twin, graph = twin_of(network.eval(), x)
    session, feed = Session(graph), {graph.inputs[0].name: x.numpy()}
    network.to(options.device), twin.to(options.device)
    on_device = x.to(options.device)
    with torch.no_grad():
        error = (network(on_device) - twin(on_device)[0]).abs().max().item()

    def step(module: nn.Module) -> None:
        out = module(on_device)
        (out[0] if isinstance(out, tuple) else out).square().mean().backward()

    def forward(module: nn.Module) -> None:
        with torch.no_grad():
            module(on_device)

    found = times(
        {
            "torch forward": lambda: forward(network),
            "twin forward": lambda: forward(twin),
            "torch step": lambda: step(network),
            "twin step": lambda: step(twin),
            "ONNX Runtime forward": lambda: session.run(feed),
        },
        options.repeats,
        options.device,
    )
    return {
        "network": name,
        "error": error,
        **found,
        "forward ratio": found["twin forward"] / found["torch forward"],
        "step ratio": found["twin step"] / found["torch step"],
    }


def main() -> None:
    """Run from the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repeats", type=int, default=20)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--json", type=Path, help="Also write the rows to this file.")
    options = parser.parse_args()
    rows = [measure("ResNet-20", ResNet20(), options), measure("ViT", ViT(), options)]
    titles = list(rows[0])
    print(f"| {' | '.join(titles)} |\n|{' --- |' * len(titles)}")
    for row in rows:
        cells = (f"{v:.4g}" if isinstance(v, float) else v for v in row.values())
        print(f"| {' | '.join(cells)} |")
    if options.json:
        options.json.write_text(json.dumps(rows, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
