"""The same loop on a CPU, a GPU, and several of them under `torchrun` or `accelerate launch`.

Lightning Fabric places modules, wraps them for several processes and runs autocast. Unlike
Hugging Face accelerate it holds no state of the whole process, so that a library may train twice
with other settings.
"""

from __future__ import annotations

import logging
import os
from typing import TYPE_CHECKING, Any, Literal

from lightning_fabric import Fabric
from lightning_fabric.plugins.precision import MixedPrecision
from lightning_fabric.strategies.ddp import DDPStrategy

from obc_onnx.errors import RequestError

if TYPE_CHECKING:
    from obc_onnx.training.options import PrecisionName, Training

_PRECISIONS: dict[PrecisionName, Literal["bf16-mixed", "16-mixed"]] = {
    "bfloat16": "bf16-mixed",
    "float16": "16-mixed",
}


class Autocast(MixedPrecision):
    """Runs autocast, and leaves inputs as they are.

    Fabric's own way rounds every float input: places in a table that come as floats would be others
    then, and large numbers infinite.
    """

    def convert_input(self, data: Any) -> Any:
        """Return `data`."""
        return data


def make_fabric(training: Training) -> Fabric:
    """Join the other processes, where there are any.

    Raises:
        RequestError: The device does not compute in the precision.
    """
    kind, _, index = training.device.partition(":")
    n_processes = int(os.environ.get("WORLD_SIZE", "1"))
    local = int(os.environ.get("LOCAL_WORLD_SIZE", n_processes))
    logging.getLogger("lightning_fabric").setLevel(logging.WARNING)
    devices: int | list[int] = local if n_processes > 1 or kind == "cpu" else [int(index or 0)]
    precision = training.options.precision
    if precision == "float16" and kind == "cpu":
        raise RequestError(
            "`TrainingOptions(precision='float16')` is for a GPU: use 'bfloat16' on a CPU"
        )
    mixed = _PRECISIONS.get(precision)
    fabric = Fabric(
        accelerator="cuda" if kind == "cuda" else "cpu",
        devices=devices,
        num_nodes=n_processes // local,
        # a weight may lie where no output depends on it
        strategy=DDPStrategy(find_unused_parameters=True) if n_processes > 1 else "auto",
        plugins=None if mixed is None else Autocast(mixed, "cuda" if kind == "cuda" else "cpu"),
    )
    fabric.launch()
    return fabric
