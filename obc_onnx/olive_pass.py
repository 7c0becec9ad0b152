"""Pruning as a pass of Olive. Needs `pip install olive-ai`; nothing else here imports it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from olive.model import ONNXModelHandler
from olive.model.utils import resolve_onnx_path
from olive.package_config import OlivePackageConfig
from olive.passes import Pass
from olive.passes.pass_config import BasePassConfig, PassConfigParam

from obc_onnx.planning.budget import Budget
from obc_onnx.planning.scope import Scope
from obc_onnx.run.api import compress

if TYPE_CHECKING:
    from olive.hardware.accelerator import AcceleratorSpec


class ObcPrune(Pass):  # type: ignore[misc] # Olive tells no types
    """Removes channels and heads, as `compress` does."""

    @classmethod
    def _default_config(cls, accelerator_spec: AcceleratorSpec) -> dict[str, PassConfigParam]:  # noqa: ARG003
        return {
            "target_macs": PassConfigParam(
                type_=float, default_value=0.5, description="Share of the MACs that may be left."
            ),
            "data": PassConfigParam(
                type_=str,
                default_value=None,
                description="Samples: a file or a folder.",
            ),
            "runtime": PassConfigParam(
                type_=str, default_value=None, description="What the result is to run on."
            ),
            "recover_minutes": PassConfigParam(
                type_=float, default_value=None, description="Of refinement by gradient."
            ),
        }

    def _run_for_config(
        self, model: ONNXModelHandler, config: type[BasePassConfig], output_model_path: str
    ) -> ONNXModelHandler:
        asked = config.model_dump()
        path = Path(resolve_onnx_path(output_model_path, Path(model.model_path).name))
        result = compress(
            model.model_path,
            data=asked["data"],
            budget=Budget(asked["target_macs"], scope=Scope(runtime=asked["runtime"])),
            recover_minutes=asked["recover_minutes"],
            latency=False,
        )
        result.save(path)
        return ONNXModelHandler(model_path=str(path))


def package_config() -> dict[str, Any]:
    """Return Olive's table of passes with this one, for `olive.workflows.run(package_config=...)`.

    A table that is given to Olive replaces its own.
    """
    own = Path(OlivePackageConfig.get_default_config_path())
    table: dict[str, Any] = json.loads(own.read_text(encoding="utf-8"))
    entry = {
        "module_path": f"{ObcPrune.__module__}.{ObcPrune.__name__}",
        "supported_providers": ["CPUExecutionProvider"],
        "supported_accelerators": ["cpu"],
        "supported_precisions": ["*"],
    }
    return {**table, "passes": {**table["passes"], ObcPrune.__name__: entry}}
