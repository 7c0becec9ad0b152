"""Trains an LSTM and a small vision transformer on Fashion-MNIST and exports them as ONNX files.

They are not shipped: repair is measured on them (`docs/recovery.md`). The LSTM reads the rows of
an image one by one; the transformer looks at patches of 4x4.
"""

from pathlib import Path

import click
import torch
from torch import Tensor, nn
from tqdm import tqdm
from train_fashion import BATCH, DIRECTORY, PIXEL_MEAN, PIXEL_STD, SEED, export, load_split, measure

SIDE, PATCH, CLASSES = 28, 4, 10
PEAK_RATE, DECAY = 2e-3, 0.01


class Recurrent(nn.Module):
    """Two layers of LSTM over the rows of an image; the last state is classified."""

    def __init__(self, width: int = 96) -> None:
        super().__init__()
        self.lstm = nn.LSTM(SIDE, width, num_layers=2, batch_first=True)
        self.hidden = nn.Linear(width, width)
        self.fc = nn.Linear(width, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        """Returns the logits of images of raw pixels."""
        rows = ((x - PIXEL_MEAN) / PIXEL_STD).squeeze(1)
        states: Tensor = self.lstm(rows)[0]
        logits: Tensor = self.fc(torch.relu(self.hidden(states[:, -1])))
        return logits


class Attention(nn.Module):
    """Attention of several heads with one projection for queries, keys and values."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(width, 3 * width)
        self.out = nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        """Maps [batch, tokens, width] to the same shape."""
        batch, tokens, width = x.shape
        split = self.qkv(x).reshape(batch, tokens, 3, self.heads, width // self.heads)
        q, k, v = split.permute(2, 0, 3, 1, 4).unbind(0)
        scores = (q @ k.transpose(-1, -2)) * (width // self.heads) ** -0.5
        mixed = scores.softmax(-1) @ v
        out: Tensor = self.out(mixed.transpose(1, 2).reshape(batch, tokens, width))
        return out


class Block(nn.Module):
    """Attention and a perceptron, each behind a norm and beside a shortcut."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.norms = nn.ModuleList(nn.LayerNorm(width) for _ in range(2))
        self.attention = Attention(width, heads)
        self.mlp = nn.Sequential(
            nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width)
        )

    def forward(self, x: Tensor) -> Tensor:
        """Maps [batch, tokens, width] to the same shape."""
        x = x + self.attention(self.norms[0](x))
        out: Tensor = x + self.mlp(self.norms[1](x))
        return out


class Transformer(nn.Module):
    """Patches, learned positions, blocks, and the mean token classified."""

    def __init__(self, width: int = 64, heads: int = 4, depth: int = 4) -> None:
        super().__init__()
        self.patches = nn.Conv2d(1, width, PATCH, PATCH)
        self.positions = nn.Parameter(torch.randn((SIDE // PATCH) ** 2, width) * 0.02)
        self.blocks = nn.Sequential(*(Block(width, heads) for _ in range(depth)))
        self.norm = nn.LayerNorm(width)
        self.fc = nn.Linear(width, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        """Returns the logits of images of raw pixels."""
        patches = self.patches((x - PIXEL_MEAN) / PIXEL_STD)
        tokens = self.blocks(patches.flatten(2).transpose(1, 2) + self.positions)
        logits: Tensor = self.fc(self.norm(tokens.mean(1)))
        return logits


NAMES = ("lstm", "transformer")


def train(model: nn.Module, pixels: Tensor, labels: Tensor, epochs: int) -> None:
    """Trains in place: AdamW, one-cycle rate."""
    generator = torch.Generator().manual_seed(SEED)
    steps = len(labels) // BATCH
    adam = torch.optim.AdamW(model.parameters(), PEAK_RATE, weight_decay=DECAY)
    schedule = torch.optim.lr_scheduler.OneCycleLR(adam, PEAK_RATE, epochs * steps)
    progress = tqdm(total=epochs * steps, desc="training", mininterval=5.0)
    for _ in range(epochs):
        order = torch.randperm(len(labels), generator=generator)
        for chosen in order[: steps * BATCH].view(steps, BATCH):
            logits = model(pixels[chosen].float())
            loss = nn.functional.cross_entropy(logits, labels[chosen])
            adam.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            adam.step()
            schedule.step()
            progress.update()
    model.eval()


@click.command(context_settings={"show_default": True})
@click.argument("names", nargs=-1, type=click.Choice(NAMES))
@click.option("--data", type=DIRECTORY, default="/usr/share/datasets/fashion-mnist")
@click.option("--output", type=DIRECTORY, required=True)
@click.option("--epochs", type=click.IntRange(1), default=3)
@click.option("--blocks", type=click.IntRange(1), default=4, help="Of the transformer.")
@click.option("--threads", type=click.IntRange(1), default=1, help="More round differently.")
def main(
    names: tuple[str, ...], data: Path, output: Path, epochs: int, blocks: int, threads: int
) -> None:
    """Makes the networks NAMES; both by default."""
    torch.set_num_threads(threads)
    output.mkdir(parents=True, exist_ok=True)
    training, test = load_split(data, "train"), load_split(data, "t10k")
    for name in names or NAMES:
        torch.manual_seed(SEED)  # noqa: TID251 - layers draw their first weights globally
        model = Transformer(depth=blocks) if name == "transformer" else Recurrent()
        path = output / f"fashion_{name}.onnx"
        train(model, torch.tensor(training.pixels), torch.tensor(training.labels), epochs)
        export(model, path)
        click.echo(f"{path.name}: test accuracy {measure(model, path, test):.2%}")


if __name__ == "__main__":
    main()
