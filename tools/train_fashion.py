"""Trains the example models on Fashion-MNIST and exports them as ONNX files.

The data are the gzip-compressed idx files of Fashion-MNIST (Debian: the package
``dataset-fashion-mnist``). The weights exported are those after the last epoch: the test
images measure them and select nothing.
"""

import copy
import gzip
import hashlib
from pathlib import Path
from typing import Any, NamedTuple

import click
import numpy as np
import numpy.typing as npt
import onnx
import onnxruntime as ort
import torch
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval
from tqdm import tqdm

PIXEL_MEAN, PIXEL_STD = 72.94, 90.02
CROP_PAD, FLIP_CHANCE = 2, 0.5
SEED, BATCH, PEAK_RATE = 0, 128, 0.2
SAMPLE_TRAIN, SAMPLE_TEST = 8000, 2000
EXPORT_OPTIONS: dict[str, Any] = {
    "input_names": ["input"],
    "output_names": ["logits"],
    "dynamic_axes": {"input": {0: "batch"}, "logits": {0: "batch"}},
    "opset_version": 17,
    "training": torch.onnx.TrainingMode.PRESERVE,
    "do_constant_folding": False,
    "dynamo": False,
}
DIRECTORY = click.Path(file_okay=False, path_type=Path)


class ConvBn(nn.Module):
    """A convolution without bias, batch normalisation and an optional activation."""

    def __init__(self, conv: nn.Conv2d, act: nn.Module | None = None) -> None:
        super().__init__()
        self.conv = conv
        self.bn: nn.Module = nn.BatchNorm2d(conv.out_channels)
        self.act = act

    def forward(self, x: Tensor) -> Tensor:
        """Applies the layers in turn."""
        y: Tensor = self.bn(self.conv(x))
        return y if self.act is None else self.act(y)


def conv(inputs: int, outputs: int, kernel: int, stride: int = 1, groups: int = 1) -> nn.Conv2d:
    """Makes a convolution that keeps the image's size, but for its stride."""
    return nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2, groups=groups, bias=False)


class ResidualBlock(nn.Module):
    """Two 3x3 convolutions and, where the shape changes, a projection shortcut."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.conv1 = ConvBn(conv(inputs, outputs, 3, stride), nn.ReLU())
        self.conv2 = ConvBn(conv(outputs, outputs, 3))
        same = inputs == outputs and stride == 1
        self.shortcut = None if same else ConvBn(conv(inputs, outputs, 1, stride))
        self.relu = nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        """Adds the shortcut to the convolutions' output."""
        short = x if self.shortcut is None else self.shortcut(x)
        y: Tensor = self.relu(self.conv2(self.conv1(x)) + short)
        return y


class InvertedResidual(nn.Module):
    """Expand 1x1, depthwise 3x3 and project 1x1, added to the input where it fits."""

    def __init__(self, inputs: int, outputs: int, stride: int, expansion: int) -> None:
        super().__init__()
        wide = inputs * expansion
        self.expand = ConvBn(conv(inputs, wide, 1), nn.ReLU6())
        self.depthwise = ConvBn(conv(wide, wide, 3, stride, groups=wide), nn.ReLU6())
        self.project = ConvBn(conv(wide, outputs, 1))
        self.skip = inputs == outputs and stride == 1

    def forward(self, x: Tensor) -> Tensor:
        """Applies the layers in turn and adds the input where it fits."""
        y: Tensor = self.project(self.depthwise(self.expand(x)))
        return x + y if self.skip else y


class Classifier(nn.Module):
    """Normalises raw pixels (0 to 255), then: body, global average pooling, logits."""

    pixel_mean: Tensor
    pixel_scale: Tensor

    def __init__(self, body: nn.Module, features: int) -> None:
        super().__init__()
        self.register_buffer("pixel_mean", torch.tensor(PIXEL_MEAN))
        self.register_buffer("pixel_scale", torch.tensor(1.0 / PIXEL_STD))
        self.body = body
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.fc = nn.Linear(features, 10)

    def forward(self, x: Tensor) -> Tensor:
        """Returns the logits of images of raw pixels."""
        pooled = self.pool(self.body((x - self.pixel_mean) * self.pixel_scale))
        logits: Tensor = self.fc(torch.flatten(pooled, 1))
        return logits


class Recipe(NamedTuple):
    """How a model is built and trained."""

    stages: tuple[tuple[int, int, int, int], ...]  # channels, blocks, stride, expansion or 0
    head: int  # width of the last 1x1 convolution, 0 for none
    epochs: int
    decay: float


RECIPES = {
    "resnet20": Recipe(((16, 3, 1, 0), (32, 3, 2, 0), (64, 3, 2, 0)), 0, 14, 5e-4),
    "mobilenet": Recipe(((24, 2, 2, 3), (40, 3, 2, 4), (64, 4, 1, 6)), 192, 11, 2e-4),
}


def build(recipe: Recipe) -> Classifier:
    """Builds a recipe's untrained model."""
    activation = nn.ReLU6 if recipe.head else nn.ReLU
    body, inputs = nn.Sequential(), 16
    body.add_module("stem", ConvBn(conv(1, inputs, 3), activation()))
    for number, (outputs, blocks, first, expansion) in enumerate(recipe.stages, 1):
        for block in range(blocks):
            shape = inputs, outputs, 1 if block else first
            inverted = InvertedResidual(*shape, expansion) if expansion else None
            body.add_module(f"stage{number}_block{block}", inverted or ResidualBlock(*shape))
            inputs = outputs
    if recipe.head:
        body.add_module("head", ConvBn(conv(inputs, recipe.head, 1), activation()))
    return Classifier(body, recipe.head or inputs)


class Images(NamedTuple):
    """Images uint8 [count, 1, 28, 28] and their labels int64 [count]."""

    pixels: npt.NDArray[np.uint8]
    labels: npt.NDArray[np.int64]


def read_idx(path: Path) -> npt.NDArray[np.uint8]:
    """Reads a gzip-compressed idx file of unsigned bytes."""
    raw = gzip.decompress(path.read_bytes())
    rank = raw[3]
    shape = np.frombuffer(raw, ">u4", count=rank, offset=4).astype(np.int64)
    return np.frombuffer(raw, np.uint8, offset=4 + 4 * rank).reshape(shape)


def load_split(data: Path, split: str) -> Images:
    """Loads the split ``train`` or ``t10k``."""
    pixels = read_idx(data / f"{split}-images-idx3-ubyte.gz")
    labels = read_idx(data / f"{split}-labels-idx1-ubyte.gz")
    return Images(pixels[:, None], labels.astype(np.int64))


def augment(pixels: Tensor, generator: torch.Generator) -> Tensor:
    """Crops every image at random out of its zero-padded self and flips half of them."""
    count, _, height, width = pixels.shape
    padded = nn.functional.pad(pixels, (CROP_PAD,) * 4)[:, 0]
    shift = torch.randint(0, 2 * CROP_PAD + 1, (2, count, 1), generator=generator)
    flip = torch.rand(count, 1, generator=generator) < FLIP_CHANCE
    columns = torch.arange(width).expand(count, width)
    columns = torch.where(flip, width - 1 - columns, columns) + shift[1]
    rows = torch.arange(height) + shift[0]
    cropped = padded[torch.arange(count)[:, None, None], rows[:, :, None], columns[:, None]]
    return cropped.float()[:, None].contiguous(memory_format=torch.channels_last)


def train(model: Classifier, data: Images, epochs: int, decay: float) -> None:
    """Trains in place: SGD with momentum, one-cycle rate, bfloat16 forward passes."""
    generator = torch.Generator().manual_seed(SEED)
    pixels, labels = torch.tensor(data.pixels), torch.tensor(data.labels)
    steps = len(labels) // BATCH
    model.train().to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    weights = model.parameters()
    sgd = torch.optim.SGD(weights, PEAK_RATE, 0.9, weight_decay=decay, nesterov=True)
    schedule = torch.optim.lr_scheduler.OneCycleLR(sgd, PEAK_RATE, epochs * steps)
    progress = tqdm(total=epochs * steps, desc="training", mininterval=5.0)
    for _ in range(epochs):
        order = torch.randperm(len(labels), generator=generator)
        for chosen in order[: steps * BATCH].view(steps, BATCH):
            with torch.autocast("cpu", torch.bfloat16):
                logits = model(augment(pixels[chosen], generator)).float()
            loss = nn.functional.cross_entropy(logits, labels[chosen], label_smoothing=0.05)
            sgd.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            sgd.step()
            schedule.step()
            progress.update()
        progress.set_postfix(loss=f"{loss.item():.3f}")
    model.eval()


def fold_batch_norms(model: Classifier) -> Classifier:
    """Returns a copy whose batch normalisations are folded into the convolutions."""
    folded = copy.deepcopy(model)
    for module in folded.modules():
        if isinstance(module, ConvBn) and isinstance(module.bn, nn.BatchNorm2d):
            module.conv = fuse_conv_bn_eval(module.conv, module.bn)
            module.bn = nn.Identity()
    return folded


def export(model: nn.Module, path: Path) -> None:
    """Writes the model as ONNX, batch normalisation kept, and checks the file."""
    torch.onnx.export(model, (torch.zeros(2, 1, 28, 28),), path, **EXPORT_OPTIONS)
    file = onnx.load(path)
    onnx.checker.check_model(file, full_check=True)
    nodes = [node for node in file.graph.node if node.op_type == "BatchNormalization"]
    expected = sum(isinstance(module, nn.BatchNorm2d) for module in model.modules())
    if len(nodes) != expected or any(len(node.output) != 1 for node in nodes):
        raise click.ClickException(f"{path}: not {expected} BatchNormalization nodes")


def measure(model: nn.Module, path: Path, test: Images) -> float:
    """Returns the file's accuracy with ONNX Runtime; its logits must be the model's."""
    session = ort.InferenceSession(path, providers=["CPUExecutionProvider"])
    parts = np.array_split(test.pixels.astype(np.float32), 20)
    logits = np.concatenate([session.run(["logits"], {"input": part})[0] for part in parts])
    with torch.no_grad():
        wanted = model(torch.tensor(parts[0])).numpy()
    if not np.allclose(logits[: len(wanted)], wanted, atol=1e-3):
        raise click.ClickException(f"{path}: its logits are not the model's")
    return float(np.mean(logits.argmax(axis=1) == test.labels))


def report(path: Path, text: str) -> None:
    """Prints a text about a file, its size and its SHA-256."""
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    click.echo(f"{path.name}: {text}, {path.stat().st_size} bytes, sha256 {digest}")


def write_samples(output: Path, training: Images, test: Images) -> None:
    """Writes 8,000 training and 2,000 test images, drawn with one generator."""
    generator = np.random.default_rng(SEED)
    parts = {"train": (training, SAMPLE_TRAIN), "test": (test, SAMPLE_TEST)}
    for name, (images, count) in parts.items():
        which = generator.choice(len(images.labels), count, replace=False)
        path = output / f"fashion-{name}.npz"
        np.savez_compressed(path, input=images.pixels[which], labels=images.labels[which])
        report(path, f"{count} images")


def make_model(name: str, output: Path, splits: tuple[Images, Images], epochs: int | None) -> None:
    """Trains one recipe's model, exports it and prints the accuracy of each file."""
    recipe = RECIPES[name]
    torch.manual_seed(SEED)  # noqa: TID251 - layers draw their first weights globally
    model = build(recipe)
    train(model, splits[0], epochs or recipe.epochs, recipe.decay)
    versions = {output / f"fashion_{name}.onnx": model}
    if not recipe.head:
        versions[output / f"fashion_{name}_folded.onnx"] = fold_batch_norms(model)
    for path, version in versions.items():
        export(version, path)
        parameters = sum(parameter.numel() for parameter in version.parameters())
        accuracy = measure(version, path, splits[1])
        report(path, f"test accuracy {accuracy:.2%}, {parameters} parameters")


@click.command(context_settings={"show_default": True})
@click.argument("parts", nargs=-1, type=click.Choice([*RECIPES, "samples"]))
@click.option("--data", type=DIRECTORY, default="/usr/share/datasets/fashion-mnist")
@click.option("--output", type=DIRECTORY, default="models")
@click.option("--epochs", type=click.IntRange(1), help="Instead of the recipe's.")
@click.option("--threads", type=click.IntRange(1), default=1, help="More round differently.")
def main(
    parts: tuple[str, ...], data: Path, output: Path, epochs: int | None, threads: int
) -> None:
    """Makes PARTS of the example models and their sample images; all by default."""
    torch.set_num_threads(threads)
    output.mkdir(parents=True, exist_ok=True)
    splits = load_split(data, "train"), load_split(data, "t10k")
    for part in parts or (*RECIPES, "samples"):
        if part == "samples":
            write_samples(output, *splits)
        else:
            make_model(part, output, splits, epochs)


if __name__ == "__main__":
    main()
