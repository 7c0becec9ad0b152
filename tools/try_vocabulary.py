"""Cuts the vocabulary of a BERT sentence encoder to the words of texts, and measures the result.

The texts are CSV files of two sentences and the score of how alike they are:

    python tools/try_vocabulary.py encoder.onnx tokenizer.json --texts known.csv --held test.csv

Of the last file it prints how far embeddings are off, and Spearman's correlation of cosines with
the scores.
"""

from __future__ import annotations

import csv
import json
import re
import unicodedata
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
import numpy as np
from scipy.stats import spearmanr

from obc_onnx.graph.model import Graph
from obc_onnx.graph.session import Session
from obc_onnx.run.strip import strip
from obc_onnx.samples.samples import Samples
from obc_onnx.stripping.options import Vocabulary

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from numpy.typing import NDArray

FILE = click.Path(exists=True, dir_okay=False, path_type=Path)
MOST_TOKENS, AT_ONCE = 64, 64
CLS, SEP, UNKNOWN = "[CLS]", "[SEP]", "[UNK]"
WORD = re.compile(r"[^\W_]+|[^\w\s]|_")
Pairs = list[tuple[str, str, float]]


def pieces(text: str, ids: Mapping[str, int]) -> list[int]:
    """Splits a text as an uncased BERT does: the longest pieces that the vocabulary has."""
    plain = unicodedata.normalize("NFD", text.lower())
    plain = "".join(letter for letter in plain if unicodedata.category(letter) != "Mn")
    found = [ids[CLS]]
    for word in WORD.findall(plain):
        own, start = [], 0
        while start < len(word):
            mark = "##" if start else ""
            ends = (e for e in range(len(word), start, -1) if mark + word[start:e] in ids)
            end = next(ends, None)
            if end is None:
                own = [ids[UNKNOWN]]
                break
            own.append(ids[mark + word[start:end]])
            start = end
        found += own
    return [*found[: MOST_TOKENS - 1], ids[SEP]]


def read(path: Path) -> Pairs:
    """Reads pairs of sentences and their scores."""
    with path.open(encoding="utf-8", newline="") as file:
        return [(one, other, float(score)) for one, other, score in csv.reader(file)]


def tokens(pairs: Pairs, ids: Mapping[str, int]) -> dict[str, NDArray[np.int64]]:
    """Lays out all first sentences and then all second ones as the encoder takes them."""
    texts = [pair[side] for side in (0, 1) for pair in pairs]
    split = [pieces(str(text), ids) for text in texts]
    words = np.zeros((len(split), MOST_TOKENS), np.int64)
    mask = np.zeros_like(words)
    for row, own in enumerate(split):
        words[row, : len(own)], mask[row, : len(own)] = own, 1
    return {"input_ids": words, "attention_mask": mask, "token_type_ids": np.zeros_like(words)}


def embeddings(graph: Graph, feed: Mapping[str, NDArray[Any]]) -> NDArray[Any]:
    """Runs an encoder on all sentences, each batch no longer than its longest."""
    session, found = Session(graph), []
    for start in range(0, len(feed["input_ids"]), AT_ONCE):
        batch = {name: array[start : start + AT_ONCE] for name, array in feed.items()}
        longest = int(batch["attention_mask"].sum(1).max())
        found.append(session.run({n: a[:, :longest] for n, a in batch.items()})["embedding"])
    return np.concatenate(found)


def correlation(vectors: NDArray[Any], pairs: Pairs) -> float:
    """Returns Spearman's correlation of cosines with scores."""
    unit = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    cosines = (unit[: len(pairs)] * unit[len(pairs) :]).sum(1)
    return float(spearmanr(cosines, [score for *_, score in pairs]).statistic)


def measure(encoder: Path, tokenizer: Path, texts: Sequence[Path], held: Path) -> list[str]:
    """Returns the rows of a table: whole, with all texts, and without the held ones."""
    ids = json.loads(tokenizer.read_text(encoding="utf-8"))["model"]["vocab"]
    graph, pairs = Graph.load(encoder), read(held)
    feed, known = tokens(pairs, ids), [pair for path in texts for pair in read(path)]
    whole = embeddings(graph, feed)
    rows = [
        f"| all | {len(ids):,} | {encoder.stat().st_size:,} | | {correlation(whole, pairs):.4f} |"
    ]
    for name, own, unknown in (
        ("texts and held", [*known, *pairs], None),
        ("texts", known, ids[UNKNOWN]),
    ):
        samples = Samples(tokens(own, ids), None, {})
        asked = Vocabulary([ids[UNKNOWN]], samples, inputs=("input_ids",), unknown=unknown)
        found = strip(encoder, vocabulary=asked)
        vectors = embeddings(found.graph, feed)
        report, off = found.report, np.abs(vectors - whole).max()
        assert report.vocabulary is not None
        rows.append(
            f"| {name} | {len(report.vocabulary.ids):,} | {report.file_bytes.after:,} | {off:.3g} "
            f"| {correlation(vectors, pairs):.4f} |"
        )
    return rows


@click.command(help=__doc__)
@click.argument("encoder", type=FILE)
@click.argument("tokenizer", type=FILE)
@click.option("--texts", type=FILE, multiple=True, required=True, help="Texts that are known.")
@click.option("--held", type=FILE, required=True, help="Texts to measure on.")
def main(encoder: Path, tokenizer: Path, texts: tuple[Path, ...], held: Path) -> None:
    """Prints a table."""
    click.echo("| ids of | rows | bytes | off by | Spearman |\n|---|---:|---:|---:|---:|")
    click.echo("\n".join(measure(encoder, tokenizer, texts, held)))


if __name__ == "__main__":
    main()
