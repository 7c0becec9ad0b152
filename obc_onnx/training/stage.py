"""The stages of training: sparse learning of the whole network, fine-tuning of the cut one."""

from __future__ import annotations

import logging
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from obc_onnx.coupling.analysis import Clock, analyse
from obc_onnx.equivalent.network import EquivalentTwin
from obc_onnx.equivalent.norms import fold_norms, same_units, unfold_norms
from obc_onnx.equivalent.starts import channel_start
from obc_onnx.recover.bench import Bench
from obc_onnx.recover.norms import why_no_norms
from obc_onnx.recover.stage import recover as repair
from obc_onnx.saliency.options import Scoring
from obc_onnx.saliency.scores import make_scene
from obc_onnx.surgery.cut import Cut
from obc_onnx.training.course import doubts_on, notes_on
from obc_onnx.training.engine import finetune
from obc_onnx.training.keeper import SPARSE_LEARNING, TUNING, Checkpoints, Keeper
from obc_onnx.training.options import LEARNING_RATE
from obc_onnx.training.sparse import GroupPenalty

if TYPE_CHECKING:
    from obc_onnx.coupling.model import Coupling
    from obc_onnx.equivalent.norms import Unfolded
    from obc_onnx.graph.model import Graph
    from obc_onnx.recover.methods import Method
    from obc_onnx.samples.samples import Samples
    from obc_onnx.training.course import Epoch
    from obc_onnx.training.options import Training


logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Tuned:
    """What training gave.

    Attributes:
        graph: The pruned graph with the trained weights.
        student: The trained network, which computes the same.
        epochs: What each pass gave.
        notes: What was decided.
        warnings: What makes the result doubtful.
    """

    graph: Graph
    student: EquivalentTwin
    epochs: list[Epoch]
    notes: list[str]
    warnings: list[str]


def tune(
    cut: Cut,
    samples: Samples,
    training: Training,
    *,
    teacher: Coupling | None = None,
    recover: Method = "auto",
    folder: Checkpoints | None = None,
) -> Tuned:
    """Train a pruned network towards its original.

    Args:
        cut: The network, cut from the original or from what sparse learning made of it; it may
            have been repaired.
        samples: To train on.
        training: How.
        teacher: Of the original, where sparse learning has changed it.
        recover: How what training starts from is repaired, where that is another network.
        folder: Where the run is kept, or None.
    """
    net, unfolded = cut, None
    if training.options.unfold_norms:
        net, unfolded = _unfold(cut, samples, training, recover=recover)
    student = _student(net, samples, training, recover=recover)
    keeper = None if folder is None else Keeper(folder, TUNING)
    course = finetune(student, net.pruned, teacher or cut.original, samples, training, keeper)
    folded = student.fold(net.pruned)
    if unfolded is not None:
        folded = fold_norms(folded, unfolded)
    notes, warnings = notes_on(course), doubts_on(course, len(samples))
    return Tuned(folded, student, course.epochs, notes, warnings)


def sparsify(
    coupling: Coupling,
    samples: Samples,
    training: Training,
    folder: Checkpoints | None = None,
) -> tuple[Graph, list[Epoch]]:
    """Train a whole network so that its weak units matter less.

    Weight decay is off, as the penalty stands for it; nothing is held out and no learning rate is
    tried, since the penalty makes the loss grow, so that the least training would look best.

    Args:
        coupling: Of the original.
        samples: To train on.
        training: As for fine-tuning; `sparse_epochs` of them.
        folder: Where the run is kept, or None.
    Returns:
        The original with the trained weights, and what each pass gave.
    """
    options = training.options
    learning = replace(
        options,
        epochs=options.sparse_epochs,
        lr=options.lr or LEARNING_RATE,
        weight_decay=0.0,
        validation=0.0,
        patience=None,
    )
    student = EquivalentTwin(Cut(coupling, {}, coupling.graph), recombine=False)
    keeper = None if folder is None else Keeper(folder, SPARSE_LEARNING)
    penalty = GroupPenalty(student, coupling, training)
    course = finetune(
        *(student, coupling.graph, coupling, samples),
        replace(training, options=learning),
        *(keeper, penalty),
    )
    return student.fold(coupling.graph).known_as(coupling.graph), course.epochs


def _unfold(
    cut: Cut, samples: Samples, training: Training, *, recover: Method
) -> tuple[Cut, Unfolded]:
    """Give the network back the norms that were folded away, and cut and repair that."""
    before = cut.original
    unfolded = unfold_norms(before.graph, samples, training.seed, before.rules)
    shapes = {port.name: before.shapes[port.name] for port in before.graph.inputs}
    coupling, _ = analyse(unfolded.graph, shapes, before.rules, Clock())
    made = Cut.of(coupling, same_units(before, cut.keep, coupling), cut.stand_ins)
    return _repaired(made, samples, training, recover), unfolded


def _student(cut: Cut, samples: Samples, training: Training, *, recover: Method) -> EquivalentTwin:
    """Make the student, and where it does not start from what is cut, its norms again.

    Another start counts only where it is nearer to the original on samples that did not make it.
    """
    options = training.options
    sliced = EquivalentTwin(cut, recombine=options.recombines)
    if not options.recombines or options.start == "select":
        return sliced
    bench = Bench(cut.original, samples)
    scene = make_scene(cut.coupling, bench.used, Scoring(), training.seed, training.device)
    start = channel_start(scene, cut.keep)
    plain = Cut.of(cut.coupling, cut.keep)  # what a refit gave stands for other matrices
    started = plain.holding(EquivalentTwin(plain, start=start).fold(plain.pruned))
    # norms only: anything else would change weights that C and D make, and so what is judged here
    if recover != "none" and not why_no_norms(started, samples):
        started = _repaired(started, samples, training, "stats")
    student = EquivalentTwin(started, start=start)
    before, after = bench.distance(cut.pruned), bench.distance(started.pruned)
    logger.info("start from least squares: error %g instead of %g", after, before)
    return student if after < before else sliced


def _repaired(cut: Cut, samples: Samples, training: Training, method: Method) -> Cut:
    bench = Bench(cut.original, samples)
    return cut.holding(repair(cut, bench, method, training.seed, training.device).graph)
