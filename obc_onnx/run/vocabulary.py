"""Cut the vocabulary of a model to what its user asks for, and prove that nothing else changes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from obc_onnx.coupling.analysis import Clock, analyse
from obc_onnx.errors import DataError, RequestError
from obc_onnx.report.stripping import Seen, TableRows, VocabularyReport
from obc_onnx.samples.ids import count_ids, read_ids
from obc_onnx.samples.placing import known_by
from obc_onnx.samples.read import check_samples, load_samples
from obc_onnx.samples.samples import Samples
from obc_onnx.stripping.tables import inputs_of_ids, tables_of
from obc_onnx.stripping.vocabulary import Wanted, cut_vocabulary
from obc_onnx.verification.vocabulary import check_others, check_put_back, check_rows

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from numpy.typing import NDArray

    from obc_onnx.coupling.model import Coupling
    from obc_onnx.graph.batch_axes import Axes
    from obc_onnx.graph.model import Graph
    from obc_onnx.samples.ids import Counts
    from obc_onnx.stripping.options import Vocabulary
    from obc_onnx.stripping.vocabulary import Narrowed
    from obc_onnx.verification.checks import Check

    Shape = tuple[int, ...]
    Feed = Mapping[str, NDArray[Any]]

_RUNS = 8
"""Runs in which ids are looked up, at most: the rows themselves are compared too."""


def samples_of(
    vocabulary: Vocabulary | None,
    graph: Graph,
    named: Axes | None,
    given: Mapping[str, Shape] | None,
) -> tuple[Graph, Samples | None]:
    """Open the samples whose ids are counted; the graph then knows where it has them.

    Raises:
        RequestError: There is nothing to count.
        DataError: They do not fit the model.
    """
    if vocabulary is None:
        return graph, None
    if vocabulary.min_count < 1:
        raise RequestError(f"`Vocabulary.min_count` is 1 or more, not {vocabulary.min_count}")
    if vocabulary.data is None:
        if vocabulary.min_count > 1:
            raise RequestError("`Vocabulary.min_count` is of samples: give `Vocabulary.data` too")
        if vocabulary.ids is None:
            raise RequestError("no id is to stay: give `Vocabulary.ids` or `Vocabulary.data`")
        return graph, None
    if isinstance(vocabulary.data, Samples):
        samples = check_samples(vocabulary.data, graph, named=named, given=given)
    else:
        samples = load_samples(vocabulary.data, graph, named=named)
    return known_by(graph, samples), samples


@dataclass(frozen=True)
class Cut:
    """A model with a smaller vocabulary.

    Attributes:
        before: The coupling of what it was cut from.
        wanted: What was to stay.
        narrowed: What became of it.
        counts: How often ids occur in samples; None without.
    """

    before: Coupling
    wanted: Wanted
    narrowed: Narrowed
    counts: Counts | None

    @classmethod
    def of(cls, coupling: Coupling, vocabulary: Vocabulary, samples: Samples | None) -> Cut:
        """Cut the vocabulary of a model.

        Args:
            coupling: Of the model.
            vocabulary: What stays.
            samples: Whose ids are counted.
        Raises:
            ObcError: It cannot be cut so.
        """
        ids = np.zeros(0, np.int64) if vocabulary.ids is None else read_ids(vocabulary.ids)
        tables = tables_of(coupling)
        inputs = inputs_of_ids(tables, vocabulary.inputs, int(ids.max(initial=0)))
        counts = None
        if samples is not None:
            rows = min(t.rows for t in tables if not t.ids.inputs.isdisjoint(inputs))
            counts = count_ids(samples, inputs)
            often = counts.ids[counts.counts >= vocabulary.min_count]
            ids = np.union1d(ids, _from_front(often, rows))
        wanted = Wanted(
            ids, inputs, vocabulary.unknown, vocabulary.narrow_head, vocabulary.untied_head
        )
        return cls(coupling, wanted, cut_vocabulary(coupling, wanted), counts)

    def whole(self, outputs: Feed) -> dict[str, NDArray[Any]]:
        """Return outputs of the original without positions that were cut."""
        found = dict(outputs)
        for head in self.narrowed.heads:
            found[head.output] = head.of_kept(found[head.output], self.narrowed.ids)
        return found

    def smaller(self, outputs: Feed) -> dict[str, NDArray[Any]]:
        """Return outputs of the result without positions that were put back."""
        found = dict(outputs)
        for head in self.narrowed.heads:
            if not head.narrow:
                found[head.output] = head.of_kept(found[head.output], self.narrowed.ids)
        return found

    def feeds(self, feed: Feed, seed: int) -> Iterator[Feed]:
        """Put ids that stay into inputs: run by run all of them, in a random order."""
        rng = np.random.default_rng(seed)
        waiting = rng.permutation(self.narrowed.ids)
        for run in range(_RUNS):
            own = dict(feed)
            for name in self.wanted.inputs:
                shape, kind = feed[name].shape, feed[name].dtype
                taken, waiting = np.split(waiting, [min(feed[name].size, len(waiting))])
                more = rng.choice(self.narrowed.ids, feed[name].size - len(taken))
                own[name] = np.concatenate([taken, more]).reshape(shape).astype(kind)
            yield own
            if not len(waiting) and run:
                return

    def coupled(self, feed: Feed) -> Coupling:
        """Return the coupling of the result, at the sizes of a feed that it runs on."""
        shapes = {name: array.shape for name, array in feed.items()}
        graph, rules = self.narrowed.graph, self.before.rules
        return analyse(graph, shapes, rules, Clock(), feed=feed)[0]

    def declared(self, original: Graph) -> Graph:
        """Return the original as its outputs are to be declared."""
        sizes = {(h.output, h.axis): len(self.narrowed.ids) for h in self.narrowed.heads}
        narrow = {h.output for h in self.narrowed.heads if h.narrow}
        return original.insert(sizes={place: n for place, n in sizes.items() if place[0] in narrow})

    def checks(self, written: Graph, feed: Feed) -> Iterator[Check]:
        """Check rows, ids that did not stay, and what was put back."""
        merged = self.narrowed.graph.merged
        yield check_rows(self.before.graph, written, self.narrowed.kept, merged)
        removed = np.setdiff1d(np.arange(self.narrowed.tables[0].rows), self.narrowed.ids)
        strange = dict(feed)
        for name in self.wanted.inputs:
            strange[name] = np.full_like(feed[name], removed[-1])
        yield check_others(written, strange, refused=self.wanted.unknown is None)
        for head in self.narrowed.heads:
            if not head.narrow:
                yield check_put_back(written, feed, head, self.narrowed.ids)

    def notes(self) -> list[str]:
        """Say which embeddings stay whole, and where nothing is won."""
        found, saved = list(self.narrowed.left), self.report().bytes_saved
        if saved <= 0:
            found.append(
                f"the vocabulary takes {-saved} bytes more than before: what numbers ids again is "
                f"larger than what went"
            )
        return found

    def report(self) -> VocabularyReport:
        """Tell what stayed and what went."""
        before, after = self.before.graph.initializers, self.narrowed.graph.initializers
        shrunk = self.narrowed.kept
        saved = sum(before[name].nbytes - after[name].nbytes for name in shrunk)
        added = sum(after[name].nbytes for name in after.keys() - before.keys())
        seen = None
        if self.counts is not None:
            rows = self.narrowed.tables[0].rows
            stays = np.isin(self.counts.ids % rows, self.narrowed.ids)
            counts = self.counts.counts
            seen = Seen(stays.size, int(stays.sum()), int(counts.sum()), int(counts[stays].sum()))
        return VocabularyReport(
            inputs=list(self.wanted.inputs),
            tables=[
                TableRows(table.name, table.lookup.node.label, table.rows, len(self.narrowed.ids))
                for table in self.narrowed.tables
            ],
            heads=list(self.narrowed.heads),
            ids=self.narrowed.ids.tolist(),
            unknown=self.wanted.unknown,
            bytes_saved=saved - added,
            seen=seen,
        )


def _from_front(ids: NDArray[np.int64], rows: int) -> NDArray[np.int64]:
    """Count ids from the front of a table, as an index below zero is from its end.

    Raises:
        DataError: One is no row.
    """
    wrong = ids[(ids < -rows) | (ids >= rows)]
    if len(wrong):
        raise DataError(f"the samples hold id {wrong[0]}, but the embedding has {rows} rows")
    return ids % rows
