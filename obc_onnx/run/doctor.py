"""What this installation has: versions, what runs models and where, and what is missing."""

from __future__ import annotations

import os
import platform

from obc_onnx.errors import InstallationError
from obc_onnx.installation import require_transport, versions, why_no_torch
from obc_onnx.memory import memory_of_machine
from obc_onnx.report.diagnosis import Diagnosis


def diagnose() -> Diagnosis:
    """Look at what is installed; nothing that is missing or damaged raises."""
    found = Diagnosis(
        versions=versions(),
        system=f"{platform.platform()}, {platform.machine()}",
        cores=len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else _all_cores(),
        memory_bytes=memory_of_machine(),
    )
    try:
        from obc_onnx.graph.runtime import available_providers

        found.providers.extend(available_providers())
    except InstallationError as error:
        found.faults.append(str(error))
    reason = why_no_torch()
    if reason:
        found.missing.append(f"scores with data, repair and training are left out: {reason}")
    else:
        from obc_onnx.twin.devices import devices

        found.devices.extend(devices())
    try:
        require_transport()
    except InstallationError as error:
        found.missing.append(str(error))
    return found


def _all_cores() -> int:
    return os.cpu_count() or 1
