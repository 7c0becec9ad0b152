"""Plant mistakes into cuts of models, and print what the masked check finds and what it allows.

    python tools/check_noise.py MODEL.onnx... [--input-shape x:2x3x48x160] [--plans 3]
        [--json FILE]

Each model is cut by random plans. The table says how many honest cuts were refused, and how many
mistakes of one unit or one array were found, of those that change a value at all: by outputs alone
within the floor of their float type, and by the masked check. A mistake is planted into weights of
the pruned graph, so that the check meets it as a bug of surgery:

- `unit`: a kept unit is masked too;
- `reader`: a product reads the weights of a removed unit in place of a kept one;
- `writer`: the weights that make a kept unit are those of a removed one;
- `bias`: a vector keeps its neighbours' entries, one position off;
- `blocks`: the blocks of a grouped convolution are one block off;
- `heads`: an axis of heads, or of positions by channels, has two of its outer parts swapped.
"""

from __future__ import annotations

import argparse
import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from check_models import random_keep
from tqdm import tqdm

from obc_onnx.axes.expressions import Product, mask
from obc_onnx.coupling.analysis import Clock, analyse
from obc_onnx.graph.feeds import random_feed
from obc_onnx.graph.model import Graph
from obc_onnx.measuring.noise import Reference
from obc_onnx.ops.catalogue import DEFAULT_RULES
from obc_onnx.surgery.cut import remove_units, slice_initializers
from obc_onnx.surgery.mask import mask_reads
from obc_onnx.verification.checks import compare
from obc_onnx.verification.oracle import Oracle

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping

    from numpy.typing import NDArray

    from obc_onnx.coupling.model import Coupling, Keep

    Values = Mapping[str, NDArray[Any]]
    Place = tuple[str, int]
    Positions = NDArray[np.int64]

TRIES = 4
"""Mistakes of each kind for each plan, at random places."""
MISTAKES = ("unit", "reader", "writer", "bias", "blocks", "heads")


@dataclass
class Row:
    """What was found of one model.

    Attributes:
        error: Of the honest cut that came nearest to its limit.
        noise: There, by rounding alone.
        limit: What was allowed there.
        refused: Honest cuts that were refused by outputs alone, and by the check.
        planted: Mistakes of each kind that change something.
        by_outputs: How many of them outputs alone find.
        found: How many of them the check finds.
    """

    model: str
    plans: int = 0
    error: float = 0.0
    noise: float = 0.0
    limit: float = 0.0
    refused: list[int] = field(default_factory=lambda: [0, 0])
    planted: dict[str, int] = field(default_factory=lambda: dict.fromkeys(MISTAKES, 0))
    by_outputs: dict[str, int] = field(default_factory=lambda: dict.fromkeys(MISTAKES, 0))
    found: dict[str, int] = field(default_factory=lambda: dict.fromkeys(MISTAKES, 0))


def examine(path: Path, plans: int, shapes: Mapping[str, tuple[int, ...]]) -> Row:
    """Cut one model by random plans, and plant mistakes into each cut.

    Args:
        path: The model.
        plans: How many cuts.
        shapes: Of inputs, by name; models may lack some of them.
    """
    graph, row = Graph.load(path), Row(path.stem)
    given = {port.name: shapes[port.name] for port in graph.inputs if port.name in shapes}
    coupling, inputs = analyse(graph, given, DEFAULT_RULES, Clock())
    feed, rng = random_feed(graph, inputs, 0), np.random.default_rng(0)
    for _ in range(plans):
        keep = random_keep(coupling, rng)
        if not keep:
            return row
        oracle, masked = Oracle(coupling, keep, feed), mask_reads(coupling, keep)
        reference = Reference.measured(masked, oracle.run_masked)
        outputs = {port.name: reference.values[port.name] for port in graph.outputs}
        alone = Reference.of(masked, outputs)
        honest = remove_units(coupling, keep)
        right = oracle.run_pruned(honest)
        check = compare("", right, reference)
        row.plans += 1
        row.refused[0] += not compare("", right, alone).passed
        row.refused[1] += not check.passed
        if check.error * (row.limit or 1) >= row.error * check.tolerance:
            row.error, row.noise, row.limit = check.error, check.noise, check.tolerance
        for kind, broken in mistakes(coupling, keep, honest, rng):
            unit = kind == "unit"
            found = oracle.run_masked(broken) if unit else oracle.run_pruned(broken)
            if _differ(found, reference.values if unit else right):
                row.planted[kind] += 1
                row.by_outputs[kind] += not compare("", found, alone).passed
                row.found[kind] += not compare("", found, reference).passed
    return row


def _differ(found: Values, right: Values) -> bool:
    """Say whether a mistake changes a single bit; one of a dead unit changes none."""
    return any(not np.array_equal(found[name], value) for name, value in right.items())


def mistakes(
    coupling: Coupling, keep: Keep, honest: Graph, rng: np.random.Generator
) -> Iterator[tuple[str, Graph]]:
    """Break a cut in every way, at random places, one at a time.

    Args:
        coupling: Of the original.
        keep: For each dim that loses units, which units stay.
        honest: The pruned graph.
        rng: Chooses the places.
    """
    for _ in range(TRIES):
        yield "unit", mask_reads(coupling, _one_less(keep, rng))
    kept = coupling.kept_positions(keep)
    for kind, places in _places(coupling, honest, kept).items():
        for index in rng.permutation(len(places))[:TRIES]:
            name, axis = places[index]
            wrong = _wrong_positions(kind, coupling, keep, honest, (name, axis), rng)
            if wrong is not None:
                positions = {**kept[name], axis: wrong}
                yield (
                    kind,
                    honest.edit(slice_initializers(coupling.graph.initializers, {name: positions})),
                )


def _one_less(keep: Keep, rng: np.random.Generator) -> Keep:
    dims = list(keep)
    dim = dims[rng.integers(len(dims))]
    kept = keep[dim].copy()
    kept[rng.choice(np.flatnonzero(kept))] = False
    return {**keep, dim: kept}


def _places(
    coupling: Coupling, honest: Graph, kept: Mapping[str, Mapping[int, Positions]]
) -> dict[str, list[Place]]:
    """List the axes of initializers where each kind of mistake can be made."""
    found: dict[str, dict[Place, None]] = {kind: {} for kind in MISTAKES[1:]}
    for role in coupling.roles:
        name = role.node.inputs[role.slot]
        place = (name, role.axis)
        if name not in honest.initializers or role.axis not in kept.get(name, {}):
            continue
        if role.kind == "reads":
            found["reader"][place] = None
        elif role.kind == "writes":
            found["writer"][place] = None
            if _n_blocks(honest, name) > 1:
                found["blocks"][place] = None
        if isinstance(coupling.axes[name][role.axis], Product):
            found["heads"][place] = None
    for name, axes in kept.items():
        if name in honest.initializers and honest.initializers[name].ndim == 1:
            found["bias"].update(dict.fromkeys((name, axis) for axis in axes))
    return {kind: list(places) for kind, places in found.items()}


def _n_blocks(graph: Graph, name: str) -> int:
    return max(int(node.attributes.get("group", 1)) for node, _ in graph.consumers[name])


def _wrong_positions(
    kind: str,
    coupling: Coupling,
    keep: Keep,
    honest: Graph,
    place: Place,
    rng: np.random.Generator,
) -> Positions | None:
    """Return what a wrong cut keeps of an axis; None where nothing can be wrong there."""
    name, axis = place
    expr = coupling.axes[name][axis]
    stays = mask(expr, keep)
    kept, removed = np.flatnonzero(stays), np.flatnonzero(~stays)
    if kind in {"reader", "writer"}:
        wrong = kept.copy()
        wrong[rng.integers(len(kept))] = rng.choice(removed)
        return wrong
    if kind == "bias":
        return (kept + 1) % len(stays)
    if kind == "blocks":
        return np.roll(kept, len(kept) // _n_blocks(honest, name))
    outer = mask(expr.factors[0], keep) if isinstance(expr, Product) else stays[:1]
    parts = kept.reshape(np.count_nonzero(outer), -1)
    return parts[rng.permutation(len(parts))].reshape(-1) if len(parts) > 1 else None


def render(rows: list[Row]) -> str:
    """Write a Markdown table."""
    titles = ["model", "honest cuts refused", "error", "noise", "limit", *MISTAKES, "all"]
    lines = [" | ".join(titles), " | ".join("---" for _ in titles)]
    for row in rows:
        cells = [row.model, f"{row.refused[1]} of {row.plans} ({row.refused[0]})"]
        cells += [f"{value:.1e}" for value in (row.error, row.noise, row.limit)]
        cells += [_share(row, [kind]) for kind in MISTAKES] + [_share(row, MISTAKES)]
        lines.append(" | ".join(cells))
    return "\n".join(f"| {line} |" for line in lines)


def _share(row: Row, kinds: Iterable[str]) -> str:
    """Write how many mistakes were found, and in brackets how many by outputs alone."""
    planted, found, by_outputs = (
        sum(counts[kind] for kind in kinds) for counts in (row.planted, row.found, row.by_outputs)
    )
    return f"{found} of {planted} ({by_outputs})" if planted else ""


def main() -> None:
    """Run from the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("models", type=Path, nargs="+", metavar="MODEL")
    parser.add_argument("--plans", type=int, default=3)
    parser.add_argument("--input-shape", action="append", default=[], help="As NAME:2x3x48x160.")
    parser.add_argument("--json", type=Path, help="Also write the rows to this file.")
    options = parser.parse_args()
    shapes = {
        name: tuple(map(int, sizes.split("x")))
        for name, _, sizes in (given.rpartition(":") for given in options.input_shape)
    }
    rows = [examine(path, options.plans, shapes) for path in tqdm(options.models)]
    print(render(rows))
    if options.json:
        text = json.dumps([asdict(row) for row in rows], indent=1)
        options.json.write_text(text + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
