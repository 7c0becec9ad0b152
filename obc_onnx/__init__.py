"""Compress deployed ONNX models: see `compress`, and `inspect` for what can be pruned."""

from __future__ import annotations

import importlib as _importlib
import typing as _typing

from obc_onnx.version import __version__

if _typing.TYPE_CHECKING:
    from obc_onnx.engines.options import EngineOptions
    from obc_onnx.errors import (
        DataError,
        DivergedError,
        EngineError,
        InfeasibleTargetError,
        InstallationError,
        InvariantError,
        ModelError,
        NoSizeError,
        ObcError,
        RequestError,
        ShapeError,
        UnsupportedOperatorError,
        UserCodeError,
        VerificationError,
    )
    from obc_onnx.latency.profile import Profile
    from obc_onnx.ops.base.rule import RuleSet
    from obc_onnx.ops.catalogue import DEFAULT_RULES
    from obc_onnx.planning.budget import Budget
    from obc_onnx.planning.plan import PruningPlan
    from obc_onnx.planning.scope import Limits, Scope
    from obc_onnx.planning.sensitivity import Sensitivity
    from obc_onnx.report.profiling import Profiling
    from obc_onnx.report.result import Result
    from obc_onnx.report.stripping import Stripping, StripReport
    from obc_onnx.report.summary import Inspection, Report
    from obc_onnx.report.sweep import Sweep
    from obc_onnx.run.api import (
        apply,
        compress,
        finetune,
        make_plan,
        score,
        verify,
    )
    from obc_onnx.run.export_trt import export_trt
    from obc_onnx.run.inspection import inspect
    from obc_onnx.run.profiling import profile, read_kit, write_kit
    from obc_onnx.run.sensitivity import measure_sensitivity
    from obc_onnx.run.strip import strip
    from obc_onnx.run.sweep import Swept, sweep
    from obc_onnx.saliency.options import Scoring
    from obc_onnx.saliency.scores import Scores
    from obc_onnx.samples.augmentation import Augmentation
    from obc_onnx.samples.image_options import ImageOptions
    from obc_onnx.samples.options import DataOptions
    from obc_onnx.samples.samples import Samples
    from obc_onnx.stripping.options import Vocabulary
    from obc_onnx.training.options import TrainingOptions
    from obc_onnx.verification.checks import Check

_DEFINED_IN = {
    "Augmentation": "samples.augmentation",
    "Budget": "planning.budget",
    "Check": "verification.checks",
    "DEFAULT_RULES": "ops.catalogue",
    "DataError": "errors",
    "DataOptions": "samples.options",
    "DivergedError": "errors",
    "EngineError": "errors",
    "EngineOptions": "engines.options",
    "ImageOptions": "samples.image_options",
    "InfeasibleTargetError": "errors",
    "Inspection": "report.summary",
    "InstallationError": "errors",
    "InvariantError": "errors",
    "Limits": "planning.scope",
    "ModelError": "errors",
    "ObcError": "errors",
    "Profile": "latency.profile",
    "Profiling": "report.profiling",
    "PruningPlan": "planning.plan",
    "Report": "report.summary",
    "RequestError": "errors",
    "Result": "report.result",
    "RuleSet": "ops.base.rule",
    "Samples": "samples.samples",
    "Scope": "planning.scope",
    "Scores": "saliency.scores",
    "Scoring": "saliency.options",
    "Sensitivity": "planning.sensitivity",
    "NoSizeError": "errors",
    "ShapeError": "errors",
    "StripReport": "report.stripping",
    "Stripping": "report.stripping",
    "Sweep": "report.sweep",
    "Swept": "run.sweep",
    "TrainingOptions": "training.options",
    "UnsupportedOperatorError": "errors",
    "UserCodeError": "errors",
    "VerificationError": "errors",
    "Vocabulary": "stripping.options",
    "apply": "run.api",
    "compress": "run.api",
    "export_trt": "run.export_trt",
    "finetune": "run.api",
    "inspect": "run.inspection",
    "make_plan": "run.api",
    "measure_sensitivity": "run.sensitivity",
    "profile": "run.profiling",
    "read_kit": "run.profiling",
    "score": "run.api",
    "strip": "run.strip",
    "sweep": "run.sweep",
    "verify": "run.api",
    "write_kit": "run.profiling",
}


def __getattr__(name: str) -> _typing.Any:
    """Load a name on first use: importing the package stays cheap."""
    if name in _DEFINED_IN:
        return getattr(_importlib.import_module(f"obc_onnx.{_DEFINED_IN[name]}"), name)
    raise AttributeError(f"module 'obc_onnx' has no attribute '{name}'")


def __dir__() -> list[str]:
    return __all__


__all__ = [
    "DEFAULT_RULES",
    "Augmentation",
    "Budget",
    "Check",
    "DataError",
    "DataOptions",
    "DivergedError",
    "EngineError",
    "EngineOptions",
    "ImageOptions",
    "InfeasibleTargetError",
    "Inspection",
    "InstallationError",
    "InvariantError",
    "Limits",
    "ModelError",
    "NoSizeError",
    "ObcError",
    "Profile",
    "Profiling",
    "PruningPlan",
    "Report",
    "RequestError",
    "Result",
    "RuleSet",
    "Samples",
    "Scope",
    "Scores",
    "Scoring",
    "Sensitivity",
    "ShapeError",
    "StripReport",
    "Stripping",
    "Sweep",
    "Swept",
    "TrainingOptions",
    "UnsupportedOperatorError",
    "UserCodeError",
    "VerificationError",
    "Vocabulary",
    "__version__",
    "apply",
    "compress",
    "export_trt",
    "finetune",
    "inspect",
    "make_plan",
    "measure_sensitivity",
    "profile",
    "read_kit",
    "score",
    "strip",
    "sweep",
    "verify",
    "write_kit",
]
