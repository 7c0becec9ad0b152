"""The order of the stages; the only module that knows it."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from functools import partial
from typing import TYPE_CHECKING, Any

from obc_onnx.coupling.analysis import Clock, Model, analyse, told
from obc_onnx.errors import InvariantError, ModelError, VerificationError
from obc_onnx.graph.model import Graph
from obc_onnx.installation import require_torch, require_transport
from obc_onnx.measuring.error import Distance
from obc_onnx.measuring.masks import with_padding
from obc_onnx.measuring.metric import Metric
from obc_onnx.measuring.noise import Reference
from obc_onnx.planning.costs import target_of_rest
from obc_onnx.planning.max_drop import DropMeter, plan_within_drop
from obc_onnx.planning.scope import AUTO
from obc_onnx.planning.search import search_plan
from obc_onnx.recover.bench import Bench
from obc_onnx.report.branches import notes_on_branches
from obc_onnx.report.network import list_layers
from obc_onnx.report.result import Result
from obc_onnx.report.summary import (
    Change,
    Report,
    note_on_blocks,
    note_on_steps,
    notes_on_graph,
    notes_on_inexact,
    summarise_frozen,
    summarise_groups,
    summarise_saliency,
)
from obc_onnx.run.decision import given_plan, outlook_of, remembering, scorer_of
from obc_onnx.run.low_rank import LowRank
from obc_onnx.run.measurement import measure
from obc_onnx.run.opened import Opened, analysed, read
from obc_onnx.run.strip import strip_first
from obc_onnx.run.timing import Timing, plan_in_time
from obc_onnx.samples.padding import describe_padding
from obc_onnx.samples.placing import first_of
from obc_onnx.surgery.cut import Cut
from obc_onnx.training.options import check_labels
from obc_onnx.verification.checks import (
    Check,
    check_masked,
    compare,
    digest_of,
    doubts,
    require,
    verification_feed,
    why_no_twin,
)
from obc_onnx.verification.result import Candidate, check_result

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    import numpy as np
    from numpy.typing import NDArray

    from obc_onnx.coupling.model import Coupling
    from obc_onnx.planning.budget import Budget
    from obc_onnx.planning.plan import PruningPlan
    from obc_onnx.recover.methods import Recovery
    from obc_onnx.report.summary import Outlook
    from obc_onnx.run.folder import RunFolder
    from obc_onnx.run.request import Request
    from obc_onnx.samples.samples import Samples
    from obc_onnx.training.course import Epoch

    Shape = tuple[int, ...]


@dataclass(frozen=True)
class Compression:
    """One compression: its request, its time, and what the report has to say.

    Attributes:
        first_scores: Of all units, before any was removed; empty where none were needed.
        checks: Of what planning begins with.
    """

    request: Request
    clock: Clock = field(default_factory=Clock)
    notes: list[str] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)
    first_scores: dict[str, NDArray[np.float64]] = field(default_factory=dict)
    checks: list[Check] = field(default_factory=list)

    def execute(self, model: Model) -> Result:
        """Go through all stages."""
        self.check_installed(repairs=True)
        opened = self.open(model)
        with told(opened.original.graph, opened.inputs):
            return self.result_of(opened)

    def result_of(self, opened: Opened) -> Result:
        """Go through the stages that follow on reading; several compressions may share that."""
        request, original = self.request, opened.original
        graph = original.graph
        folder = self._folder(graph)
        if folder is not None and folder.note is not None:
            self.notes.append(folder.note)
        coupling, sparse_epochs = self._sparsify(original, opened.samples, folder)
        if coupling is not original and opened.samples is not None:
            opened = opened._replace(coupling=coupling, bench=Bench(coupling, opened.samples))
        opened, plan = self._decided(opened, folder)
        coupling, graph = opened.coupling, opened.original.graph
        inputs, samples, held = opened.inputs, opened.samples, opened.held
        keep = plan.keep(coupling)
        self.notes.extend(notes_on_branches(coupling, plan.stand_ins(coupling)))
        self.notes.extend([*notes_on_graph(graph), *notes_on_inexact(coupling, keep)])
        feed = verification_feed(graph, held, inputs, request.seed)
        with self.clock("verify"):  # first, since it holds several copies of the weights
            checks = [*self.checks, check_masked(coupling, keep, feed, plan.stand_ins(coupling))]
            require(checks)
        with self.clock("cut"):
            made = self._candidate(opened, plan, feed)
        repaired, recovery = self._recover(made, opened.bench)
        tuned, epochs, folded = self._finetune(repaired, samples, folder)
        result = tuned.cut.pruned
        written = Graph.from_model(result.written()).with_batch(graph.batch_axes)
        plan = plan.written_as(coupling, result)
        if result is not made.cut.pruned or coupling is not original or plan.low_rank:
            plan = replace(plan, weights_sha256=digest_of(written.stored))
        final = replace(tuned, plan=plan)
        with self.clock("verify"):
            checks += [*folded, *check_result(final, written, self.clock)]
            require(checks)
            self.warnings.extend(doubts(checks))
        report = self._report(final, opened, checks, (sparse_epochs, epochs), recovery)
        found = Result(result, plan, report)
        if folder is not None:
            folder.keep_result(found)
        return found

    def _candidate(
        self, opened: Opened, plan: PruningPlan, feed: Mapping[str, NDArray[Any]]
    ) -> Candidate:
        coupling = opened.coupling
        return Candidate(
            cut=Cut.of(coupling, plan.keep(coupling), plan.stand_ins(coupling)),
            plan=plan,
            inputs=opened.inputs,
            feed=feed,
            no_twin=why_no_twin(coupling),
            original=opened.original,
            predictor=opened.predictor,
        )

    def decide(self, model: Model) -> Outlook:
        """Go through the stages up to the plan."""
        self.check_installed(repairs=self.request.goal.max_drop is not None)
        opened = self.open(model)
        with told(opened.original.graph, opened.inputs):
            opened, plan = self._decided(opened, None, measures=False)
            coupling = opened.original
        return outlook_of(self.request, plan, coupling, self.first_scores, self.notes)

    def _timing(self, opened: Opened) -> Timing | None:
        """Read what tells milliseconds, or measure it where a target needs it."""
        request, original = self.request, opened.original
        if request.costs is None and not request.is_timed:
            return None
        with self.clock("profile"):
            if request.costs is not None:
                timing = Timing.of(original, request.costs, request.seed)
            else:
                timing = Timing.measured(original, opened.inputs, request.seed)
        self.notes.append(timing.note)
        return timing

    def check_installed(self, *, repairs: bool) -> None:
        """Check before long work that what was asked for is installed.

        Repair without data is left out where torch is missing, unless it was asked for by name.
        """
        request = self.request
        if request.recover == "fuse":
            require_transport()
            require_torch("`recover='fuse'`")
        if request.training is not None:
            require_torch("fine-tuning")
        if repairs and request.data.source is not None and request.recover != "none":
            require_torch("repair with samples, which `recover='none'` leaves out,")

    def open(self, model: Model) -> Opened:
        """Load and analyse, and check what the request asks for against the samples."""
        request = self.request
        metric = Metric.of(request.data)  # before long work
        with self.clock("load"):
            graph, samples, held = read(
                model, request.data, request.input_shape, request.batch_axes
            )
        if request.training is not None and samples is not None:
            check_labels(request.training, labelled=samples.labels is not None)
        coupling, inputs = analysed(
            graph, samples, request.input_shape, request.batch_axes, request.rules, self.clock
        )
        self.notes.extend(coupling.graph.batch_axes.notes)
        came, coupling = coupling, self._stripped(coupling, inputs)
        if samples is not None and held is not None:
            most = request.data.eval_samples
            if len(held) > most - (graph.batch or 1):
                self.notes.append(
                    f"no more than {most:,} samples are measured on: "
                    f"`DataOptions.eval_samples` sets how many"
                )
            samples, held = with_padding(coupling, samples, held)
            if samples.padding is not None:
                self.notes.append(describe_padding(samples.padding))
        distance = None if held is None else Distance(coupling, held)
        bench = None if samples is None else Bench(coupling, samples)
        opened = Opened(coupling, inputs, samples, held, coupling, distance, bench, metric)
        if coupling is not came:
            opened = opened._replace(came=came, stripped=True)
        with told(coupling.graph, inputs):
            return opened._replace(timing=self._timing(opened))

    def _stripped(self, coupling: Coupling, inputs: Mapping[str, Shape]) -> Coupling:
        """Take out what does nothing, where that was asked for or a plan says so."""
        request = self.request
        asked = request.goal.strip and request.scores is None
        asked &= request.costs is None and not request.is_timed
        if not (asked if request.plan is None else request.plan.stripped):
            return coupling
        with self.clock("strip"):
            try:
                seed = request.seed if request.plan is None else request.plan.seed
                found = strip_first(coupling, inputs, seed)
            except (ModelError, VerificationError) as error:
                if request.plan is not None:
                    raise
                found = None
                self.notes.append(f"what does nothing was not taken out first: {error}")
        if found is None:
            return coupling
        before, after = (sum(g.size for g in c.groups) for c in (coupling, found))
        self.notes.append(
            f"{before - after} units of {before} did nothing and went first, exactly: "
            f"`Budget(strip=False)` leaves them to the plan"
        )
        return found

    def _folder(self, graph: Graph) -> RunFolder | None:
        """Open the folder of the run, which has to have been asked for the same."""
        request = self.request
        if request.run_dir is None:
            return None
        from obc_onnx.run.folder import RunFolder, facts_of
        from obc_onnx.twin.processes import rank

        facts = facts_of(request, graph.sha256)
        return RunFolder(request.run_dir, facts, resume=request.resume, writes=rank() == 0)

    def _decided(
        self, opened: Opened, folder: RunFolder | None, *, measures: bool = True
    ) -> tuple[Opened, PruningPlan]:
        """Return a plan, and the network that it is for: layers may be split in it.

        Args:
            opened: The model and samples.
            folder: Of the run, which may have made a plan already.
            measures: Whether one for a target of time is measured; a profile alone tells it else.
        """
        made = self.request.plan or (None if folder is None else folder.plan())
        if made is not None:
            made.check_model(opened.coupling.graph.sha256, self.request.name)
        low = self._split(opened, made)
        split = opened if low is None else low.put_into(opened)
        plan = self._plan(split, measures=measures) if made is None else self._given(split, made)
        if low is not None:
            low, plan, names = low.settled(plan)
            split = low.put_into(opened) if low.halves else opened
            scores, known = self.first_scores, names.keys() & self.first_scores.keys()
            scores.update({names[was]: scores.pop(was) for was in known})
            self.notes.extend(low.notes(plan))
            if not low.halves:
                self.checks.clear()
        if made is None and folder is not None:
            folder.keep_plan(plan)
        return split, plan

    def _split(self, opened: Opened, made: PruningPlan | None) -> LowRank | None:
        """Split layers, where that was asked for or a plan says so."""
        if not (self.request.goal.low_rank if made is None else made.low_rank):
            return None
        with self.clock("low rank"):
            found = LowRank.of(opened.coupling, opened.samples, made)
            graph, seed = opened.coupling.graph, self.request.seed
            feed = verification_feed(graph, opened.held, opened.inputs, seed)
            self.checks[:] = [found.check(feed)]
            require(self.checks)
        return found

    def _given(self, opened: Opened, made: PruningPlan) -> PruningPlan:
        """Return a plan that was given or that a run has made already."""
        coupling = opened.coupling
        with self.clock("score and plan"):
            scorer = partial(scorer_of, self.request, coupling, opened.samples, self.notes)
            plan, notes = given_plan(made, coupling, scorer, opened.predictor)
        self.notes.extend(notes)
        return plan

    def _plan(self, opened: Opened, *, measures: bool) -> PruningPlan:
        """Make a plan, see `_decided`."""
        request, coupling = self.request, opened.coupling
        with self.clock("score and plan"):
            scorer = scorer_of(request, coupling, opened.samples, self.notes)
            score = remembering(scorer.score, self.first_scores)
            repairs = opened.samples is not None or request.recover != "none"
            scored = partial(search_plan, coupling, score, criterion=scorer.name)
            told = {"splits": repairs, "repaired": scorer.repairs, "predictor": opened.predictor}
            plan_of = partial(scored, seed=request.seed, **told)
            if request.goal.max_drop is not None:
                plan = self._plan_within_drop(opened, plan_of)
            elif opened.timing is not None and request.is_timed and measures:
                plan = self._plan_in_time(opened.timing, coupling, plan_of)
            else:
                plan = plan_of(_goal_of_rest(request.goal, opened))
            plan = replace(plan, stripped=opened.stripped)
        if request.goal.scope.round_to == AUTO and opened.predictor is not None:
            self.notes.append(note_on_steps(coupling, opened.predictor))
        elif request.goal.scope.multiple is None and plan.round_to is not None:
            self.notes.append(note_on_blocks(plan, plan.round_to))
        return plan

    def _plan_in_time(
        self,
        timing: Timing,
        coupling: Coupling,
        plan_of: Callable[[Budget], PruningPlan],
    ) -> PruningPlan:
        """Find a plan whose measured time is within the target, where its engine is here."""
        goal = self.request.goal
        if timing.absent:
            self.warnings.append(f"the time is predicted and was not measured: {timing.absent}")
            return plan_of(goal)
        plan, note = plan_in_time(plan_of, goal, coupling, timing)
        self.notes.append(note)
        return plan

    def _plan_within_drop(
        self, opened: Opened, plan_of: Callable[[Budget], PruningPlan]
    ) -> PruningPlan:
        """Find the smallest plan whose result, repaired but not trained, is hardly worse."""
        coupling, held = opened.coupling, opened.held
        if held is None or opened.distance is None:
            raise InvariantError("a drop was asked for without samples to measure it on")
        feed = verification_feed(coupling.graph, held, opened.inputs, self.request.seed)
        notes, warnings = list(self.notes), list(self.warnings)

        def result_of(plan: PruningPlan) -> Graph:
            tried = self._candidate(opened, plan, feed)
            return self._recover(tried, opened.bench)[0].cut.pruned

        judge = DropMeter(opened.distance, opened.metric)
        plan, note = plan_within_drop(plan_of, self.request.goal, result_of, judge)
        self.notes[:] = [*notes, note]  # and not those of the repairs that were tried
        self.warnings[:] = warnings
        return plan

    def _sparsify(
        self, coupling: Coupling, samples: Samples | None, folder: RunFolder | None
    ) -> tuple[Coupling, list[Epoch]]:
        """Let weak units of the whole network shrink, where that was asked for."""
        request, training = self.request, self.request.run
        if training is None or samples is None or not training.options.sparse_epochs:
            return coupling, []
        from obc_onnx.training.stage import sparsify

        with self.clock("sparse learning"):
            graph, epochs = sparsify(coupling, samples, training, folder)
        shapes = {port.name: coupling.shapes[port.name] for port in coupling.graph.inputs}
        return analyse(graph, shapes, request.rules, self.clock, feed=first_of(samples))[0], epochs

    def _recover(self, made: Candidate, bench: Bench | None) -> tuple[Candidate, list[Recovery]]:
        """Repair without labels, where there is anything to do it with."""
        method = self.request.recover
        if method == "none":
            return made, []
        if made.no_twin:
            self.notes.append(f"nothing was repaired: {made.no_twin}")
            return made, []
        from obc_onnx.recover.stage import recover

        with self.clock("recover"):
            seed, device = self.request.seed, self.request.device
            minutes = self.request.refining_minutes
            found = recover(made.cut, bench, method, seed, device, minutes)
        self.notes.extend(found.notes)
        self.warnings.extend(found.warnings)
        return made.holding(found.graph), found.steps

    def _finetune(
        self, made: Candidate, samples: Samples | None, folder: RunFolder | None
    ) -> tuple[Candidate, list[Epoch], list[Check]]:
        training, graph = self.request.run, made.cut.coupling.graph
        if training is None or samples is None or training.options.epochs == 0:
            return made, [], []
        from obc_onnx.training.stage import tune
        from obc_onnx.twin.build import run_module

        with self.clock("fine-tune"):
            tuned = tune(
                made.cut,
                samples,
                training,
                teacher=made.original,
                recover=self.request.recover,
                folder=folder,
            )
        with self.clock("verify"):
            trained = run_module(tuned.student, graph, made.feed)
            reference = Reference.of_outputs(tuned.graph, made.feed)
        check = compare("folded equals trained network", trained, reference)
        self.notes.extend(tuned.notes)
        self.warnings.extend(tuned.warnings)
        if training.options.equivalent is None and not training.options.recombines:
            self.notes.append(
                "sliced weights were trained: compressors and decompressors gain where labels "
                "alone teach; `TrainingOptions.equivalent` trains them too"
            )
        return made.holding(tuned.graph), tuned.epochs, [check]

    def _report(
        self,
        final: Candidate,
        opened: Opened,
        checks: list[Check],
        epochs: tuple[list[Epoch], list[Epoch]],
        recovery: list[Recovery],
    ) -> Report:
        plan, cut, came = final.plan, final.cut, opened.came or final.original
        asked = self.request.goal.targets if opened.came and not self.request.plan else plan.targets
        with self.clock("measure"):
            found = measure(self.request, opened, final, trained=bool(epochs[1]))
        self.notes.extend(found.notes)
        self.warnings.extend(found.warnings)
        return Report(
            model=self.request.name,
            criterion=plan.criterion,
            targets=asked,
            macs=Change(came.macs({}), plan.macs[1]),
            params=Change(came.graph.params, plan.params[1]),
            file_bytes=Change(
                came.graph.file_bytes or came.graph.size_bytes(), cut.pruned.size_bytes()
            ),
            held_out=0 if opened.held is None else len(opened.held),
            groups=summarise_groups(cut.coupling, cut.keep),
            layers=list_layers(cut.coupling, cut.keep),
            saliency=summarise_saliency(cut.coupling, self.first_scores, cut.keep),
            frozen=summarise_frozen(cut.coupling),
            unknown=list(cut.coupling.unknown),
            recovery=recovery,
            notes=self.notes,
            warnings=self.warnings,
            sparse_epochs=epochs[0],
            epochs=epochs[1],
            verification=checks,
            seconds=self.clock.seconds,
            **found.measured._asdict(),
        )


def _goal_of_rest(goal: Budget, opened: Opened) -> Budget:
    """Return a budget of the model as one of what stripping has left of it."""
    if opened.came is None:
        return goal
    return goal.with_targets(
        {
            name: target_of_rest(name, target, opened.came, opened.coupling)
            for name, target in goal.targets.items()
        }
    )
