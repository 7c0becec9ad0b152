"""A folder that holds all of a run: what was asked for, the plan, checkpoints, metrics, the result.

A run that was broken off goes on from its last checkpoint, and ends with the same bytes as one that
was not.
"""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from obc_onnx.errors import RequestError
from obc_onnx.files import check_regular, file_sha256, replacing, sweep
from obc_onnx.planning.plan import PruningPlan
from obc_onnx.user_code import file_of
from obc_onnx.verification.checks import digest_of

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from obc_onnx.report.result import Result
    from obc_onnx.run.request import Request
    from obc_onnx.samples.options import DataOptions
    from obc_onnx.samples.samples import Samples

_CONFIG, _PLAN, _METRICS = "config.json", "plan.json", "metrics.jsonl"
_RESULT, _FINAL_PLAN, _REPORT = "result.onnx", "result.json", "report.json"
_CHECKPOINT = "checkpoint.pt"
PAGE = "report.html"
"""Of a run whose report was written as a page elsewhere."""


def facts_of(request: Request, sha256: str) -> dict[str, Any]:
    """Describe what a run was asked for; another one does not go on with its folder.

    Args:
        request: What was asked for.
        sha256: Of the model.
    """
    return {
        "model": sha256,
        "data": facts_of_data(request.data),
        "scores": None if request.scores is None else digest_of(request.scores.groups),
        "code": facts_of_code(request.code),
        "budget": asdict(request.goal),
        "plan": None if request.plan is None else request.plan.to_json(),
        "costs": None if request.costs is None else request.costs.sha256,
        "criterion": request.criterion,
        "scoring": asdict(request.look),
        "training": None if request.training is None else asdict(request.training),
        "recover": request.recover,
        "recover minutes": request.refining_minutes,
        "seed": request.seed,
        "device": request.device,
        "batch axes": dict(request.batch_axes),
    }


def facts_of_data(data: DataOptions) -> dict[str, Any]:
    """Describe samples so that others are told from them, without reading them."""
    places = {"source": data.source, "evaluation": data.evaluation}
    return {
        **{name: _stamp(place) for name, place in places.items() if place is not None},
        "holdout": data.holdout,
        "eval samples": data.eval_samples,
        "images": asdict(data.images),
        "mask input": data.mask_input,
        "metric": data.metric if isinstance(data.metric, str) else _named(data.metric),
        "lower is better": data.lower_is_better,
    }


def _named(function: object) -> str | None:
    return None if function is None else f"in memory: {type(function).__name__}"


def _stamp(place: str | Path | Samples) -> list[Any]:
    if not isinstance(place, (str, Path)):
        return ["in memory", len(place)]
    path = file_of(place) or Path(place)
    files = [path] if path.is_file() else sorted(p for p in path.rglob("*") if p.is_file())
    stats = [file.stat() for file in files]
    return [
        str(place),
        len(files),
        sum(s.st_size for s in stats),
        max(s.st_mtime_ns for s in stats),
    ]


def facts_of_code(sources: Iterable[str | None]) -> dict[str, str]:
    """Hash the files of functions that a user wrote.

    Args:
        sources: `FILE.py:FUNCTION`, or names without a file, which are passed over.
    """
    files = {Path(source.rpartition(":")[0]) for source in sources if source and ".py:" in source}
    return {str(path): file_sha256(path) for path in sorted(files) if path.is_file()}


def results_in(path: Path) -> list[Path]:
    """List the results that a run has written into its folder: its model, plan and page."""
    names = (_RESULT, _FINAL_PLAN, PAGE)
    return [path / name for name in names if (path / name).is_file()]


class RunFolder:
    """Where a run lies.

    Args:
        path: The folder; it is made where it is missing.
        facts: What was asked for, as plain data: a run is gone on with only if it is the same.
        resume: Whether to go on with a run that is there. Without one it starts.
        writes: Whether this process writes, and checks; of several the first one does.
    Raises:
        RequestError: There is a run already and it was not to be resumed, or it is another one.
    """

    def __init__(
        self, path: Path, facts: Mapping[str, Any], *, resume: bool, writes: bool = True
    ) -> None:
        self.path, self.resume, self._writes = path, resume, writes
        if writes:
            self._open(facts)

    def _open(self, facts: Mapping[str, Any]) -> None:
        path, resume = self.path, self.resume
        config = path / _CONFIG
        text = json.dumps(dict(facts), indent=1, sort_keys=True, default=str) + "\n"
        if path.exists() and not path.is_dir():
            raise RequestError(f"`run_dir` '{path}' is a file: name a folder")
        if config.exists():
            if not resume:
                raise RequestError(
                    f"`run_dir` '{path}' holds a run: go on with it by `resume`, or name another"
                )
            self._check_same(config, text)
        elif path.exists() and any(path.iterdir()):
            raise RequestError(f"`run_dir` '{path}' is not empty and holds no run: name another")
        try:
            path.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise RequestError(f"`run_dir` '{path}' cannot be made: {error.strerror}") from error
        sweep(path)
        self._write(_CONFIG, text)

    def _check_same(self, config: Path, text: str) -> None:
        check_regular(config, "configuration", RequestError)
        try:
            old, new = json.loads(config.read_text(encoding="utf-8")), json.loads(text)
        except (OSError, ValueError, RecursionError) as error:
            raise RequestError(f"'{config}' cannot be read as JSON") from error
        if not isinstance(old, dict):
            raise RequestError(f"'{config}' is no configuration of a run")
        other = sorted(key for key in {*old, *new} if old.get(key) != new.get(key))
        if other:
            raise RequestError(
                f"the run in '{self.path}' was asked for another {', '.join(other)}: resume with "
                f"what it was started with, or name another `run_dir`"
            )

    @property
    def note(self) -> str | None:
        """What to say of a run that is gone on with though it had ended."""
        if not (self.resume and (self.path / _REPORT).exists()):
            return None
        return (
            f"the run in '{self.path}' had ended: its result is the same again, as '{_RESULT}' and "
            f"'{_FINAL_PLAN}' there hold it"
        )

    def checkpoint(self, stage: str) -> Path:
        """Say where states of a stage of training are kept."""
        return self.path / _of_stage(stage, _CHECKPOINT)

    def plan(self) -> PruningPlan | None:
        """Return the plan of the run that goes on, None before it was made."""
        path = self.path / _PLAN
        return PruningPlan.load(path) if self.resume and path.exists() else None

    def keep_plan(self, plan: PruningPlan) -> None:
        """Keep what was decided, so that units are not scored again."""
        self._write(_PLAN, plan.to_json())

    def keep_metrics(self, stage: str, lines: Sequence[Mapping[str, Any]]) -> None:
        """Keep one JSON object per epoch of a stage."""
        name = _of_stage(stage, _METRICS)
        self._write(name, "".join(json.dumps(dict(line)) + "\n" for line in lines))

    def keep_result(self, result: Result) -> None:
        """Keep the model, its plan, and what was measured."""
        if self._writes:
            result.save(self.path / _RESULT, self.path / _FINAL_PLAN)
        self._write(_REPORT, result.report.to_json() + "\n")

    def _write(self, name: str, text: str) -> None:
        if self._writes:
            with replacing(self.path / name) as partial:
                partial.write_text(text, encoding="utf-8")


def _of_stage(stage: str, name: str) -> str:
    return f"{stage}-{name}" if stage else name
