"""What an installation has, as plain data and as text."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field


@dataclass
class Diagnosis:
    """What an installation has.

    Attributes:
        versions: Of this package and of what it computes with, by name.
        system: The operating system and the processor.
        cores: Of the processor that this process may use.
        memory_bytes: Of the machine; None where the system does not tell.
        providers: What ONNX Runtime can run models with, the preferred one first.
        devices: Where torch can compute.
        missing: What can be done without, and what to run to have it.
        faults: Why nothing works, and what to run.
    """

    versions: dict[str, str]
    system: str
    cores: int
    memory_bytes: int | None
    providers: list[str] = field(default_factory=list)
    devices: list[str] = field(default_factory=list)
    missing: list[str] = field(default_factory=list)
    faults: list[str] = field(default_factory=list)

    def to_json(self) -> str:
        """Write one JSON object."""
        return json.dumps(asdict(self), indent=1)


def diagnosis_text(diagnosis: Diagnosis) -> str:
    """Render what an installation has, one line each."""
    memory = diagnosis.memory_bytes
    rows = [
        *diagnosis.versions.items(),
        ("system", diagnosis.system),
        ("cores", str(diagnosis.cores)),
        ("memory", "unknown" if memory is None else f"{memory / 2**30:.1f} GiB"),
        ("providers", ", ".join(diagnosis.providers) or "none"),
        ("devices", ", ".join(diagnosis.devices) or "none"),
    ]
    width = max(len(name) for name, _ in rows)
    lines = [f"{name:<{width}}  {said}" for name, said in rows]
    lines += (f"missing: {sentence}" for sentence in diagnosis.missing)
    lines += (f"fault: {sentence}" for sentence in diagnosis.faults)
    return "\n".join([*lines, "models cannot be run" if diagnosis.faults else "models can be run"])
