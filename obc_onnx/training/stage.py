"""The stages of training: sparse learning of the whole network, fine-tuning of the cut one."""

from __future__ import annotations

import logging
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from obc_onnx.coupling.analysis import Clock, analyse
from obc_onnx.equivalent.network import EquivalentTwin
from obc_onnx.equivalent.norms import fold_norms, same_units, unfold_norms
from obc_onnx.equivalent.starts import channel_start
from obc_onnx.measuring.error import Distance, split
from obc_onnx.recover.norms import why_no_norms
from obc_onnx.recover.stage import recover as repair
from obc_onnx.saliency.options import Scoring
from obc_onnx.saliency.scores import make_scene
from obc_onnx.surgery.cut import remove_units
from obc_onnx.training.course import doubts_on, notes_on
from obc_onnx.training.engine import finetune
from obc_onnx.training.keeper import SPARSE_LEARNING, TUNING, Checkpoints, Keeper
from obc_onnx.training.options import LEARNING_RATE
from obc_onnx.training.sparse import GroupPenalty

if TYPE_CHECKING:
    from obc_onnx.coupling.model import Coupling, Keep
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


@dataclass(frozen=True)
class _Net:
    """A network that is cut, as training sees it: with norms unfolded, where that was asked for."""

    coupling: Coupling
    keep: Keep
    pruned: Graph
    unfolded: Unfolded | None = None


def tune(
    coupling: Coupling,
    keep: Keep,
    pruned: Graph,
    samples: Samples,
    training: Training,
    *,
    teacher: Coupling | None = None,
    recover: Method = "auto",
    folder: Checkpoints | None = None,
) -> Tuned:
    """Train a pruned network towards its original.

    Args:
        coupling: Of what was cut: the original, or what sparse learning made of it.
        keep: The units that stay.
        pruned: The same without the others; its norms may have been re-estimated.
        samples: To train on.
        training: How.
        teacher: Of the original, where sparse learning has changed it.
        recover: How what training starts from is repaired, where that is another network.
        folder: Where the run is kept, or None.
    """
    net = _Net(coupling, keep, pruned)
    if training.options.unfold_norms:
        net = _unfold(net, samples, training, recover=recover)
    student = _student(net, samples, training, recover=recover)
    keeper = None if folder is None else Keeper(folder, TUNING)
    course = finetune(student, net.pruned, teacher or coupling, samples, training, keeper)
    folded = student.fold(net.pruned)
    if net.unfolded is not None:
        folded = fold_norms(folded, net.unfolded)
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
    student = EquivalentTwin(coupling, {}, coupling.graph, recombine=False)
    keeper = None if folder is None else Keeper(folder, SPARSE_LEARNING)
    penalty = GroupPenalty(student, coupling, training)
    course = finetune(
        *(student, coupling.graph, coupling, samples),
        replace(training, options=learning),
        *(keeper, penalty),
    )
    return student.fold(coupling.graph).known_as(coupling.graph), course.epochs


def _unfold(net: _Net, samples: Samples, training: Training, *, recover: Method) -> _Net:
    unfolded = unfold_norms(net.coupling.graph, samples, training.seed)
    shapes = {port.name: net.coupling.shapes[port.name] for port in net.coupling.graph.inputs}
    coupling, _ = analyse(unfolded.graph, shapes, net.coupling.rules, Clock())
    keep = same_units(net.coupling, net.keep, coupling)
    pruned = remove_units(coupling, keep)
    made = _Net(coupling, keep, pruned, unfolded)
    return replace(made, pruned=_repaired(made, pruned, samples, training, recover))


def _student(net: _Net, samples: Samples, training: Training, *, recover: Method) -> EquivalentTwin:
    """Make the student, and where it does not start from what is cut, its norms anew.

    Another start counts only where it is nearer to the original on samples that did not make it.
    """
    options = training.options
    sliced = EquivalentTwin(net.coupling, net.keep, net.pruned, recombine=options.recombines)
    if not options.recombines or options.start == "select":
        return sliced
    used, held = split(samples, net.coupling.graph.batch or 1)
    scene = make_scene(net.coupling, used, Scoring(), training.seed, training.device)
    start = channel_start(scene, net.keep)
    cut = remove_units(net.coupling, net.keep)  # what a refit gave stands for other matrices
    pruned = EquivalentTwin(net.coupling, net.keep, cut, start=start).fold(cut)
    # norms only: anything else would change weights that C and D make, and so what is judged here
    if recover != "none" and not why_no_norms(net.coupling, pruned, samples):
        pruned = _repaired(net, pruned, samples, training, "stats")
    student = EquivalentTwin(net.coupling, net.keep, pruned, start=start)
    error_of = Distance(net.coupling, held)
    before, after = error_of(net.pruned), error_of(pruned)
    logger.info("start from least squares: error %g instead of %g", after, before)
    return student if after < before else sliced


def _repaired(
    net: _Net, graph: Graph, samples: Samples, training: Training, method: Method
) -> Graph:
    where = training.seed, training.device
    return repair(net.coupling, net.keep, graph, samples, method, *where).graph
