"""Where torch can compute on this machine."""

from __future__ import annotations

import torch


def devices() -> list[str]:
    """List the devices that `device` takes, each with what it is."""
    found = ["cpu"]
    for number in range(torch.cuda.device_count()):
        facts = torch.cuda.get_device_properties(number)
        found.append(f"cuda:{number} ({facts.name}, {facts.total_memory / 2**30:.1f} GiB)")
    if torch.backends.mps.is_available():
        found.append("mps")
    return found
