"""The options of trtexec that are written, and which versions of TensorRT have them.

Sources: `trtexec --help`, which is samples/common/sampleOptions.cpp of NVIDIA/TensorRT, branches
release/10.* and release/11.*; for what left, the guide of NVIDIA's documentation to migrate from
version 10 to 11. There networks are strongly typed: precisions are those of the file.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

VERSIONS = (10, 11)
"""Of TensorRT; each gets a script of its own."""


class Flag(NamedTuple):
    """An option of trtexec.

    Attributes:
        name: With its dashes.
        value: As a script for sh has it, where `$...` are variables of the script, and `{...}` what
            `values` of `arguments` gives; empty for a switch.
        versions: Those that have it, and where it is no switch without effect.
    """

    name: str
    value: str = ""
    versions: tuple[int, ...] = VERSIONS


FLAGS = (
    Flag("--onnx", '"$model"'),
    Flag("--saveEngine", '"$engine"'),
    Flag("--minShapes", "{min}"),
    Flag("--optShapes", "{opt}"),
    Flag("--maxShapes", "{max}"),
    Flag("--shapes", "{opt}"),
    Flag("--builderOptimizationLevel", "3"),
    Flag("--timingCacheFile", "timing_trt{version}.cache"),
    Flag("--profilingVerbosity", "detailed"),
    Flag("--exportTimes", '"$name.times.json"'),
    Flag("--exportProfile", '"$name.profile.json"'),
    Flag("--exportLayerInfo", '"$name.layers.json"'),
    Flag("--loadInputs", "{inputs}"),
    # version 11 does these without being asked
    Flag("--stronglyTyped", versions=(10,)),
    Flag("--useCudaGraph", versions=(10,)),
    Flag("--useSpinWait", versions=(10,)),
    Flag("--noDataTransfers", versions=(10,)),
    Flag("--separateProfileRun", versions=(10,)),
    # new in version 11, which wants the threshold with the references
    Flag("--loadRefOutputs", "{references}", versions=(11,)),
    Flag("--accuracyAlgorithm", "{algorithm}", versions=(11,)),
    Flag("--accuracyThreshold", '"${{THRESHOLD:-{threshold}}}"', versions=(11,)),
)


def arguments(version: int, values: Mapping[str, str]) -> Iterator[str]:
    """Yield the arguments for one version, quoted for sh.

    Args:
        version: Of TensorRT.
        values: What stands in braces; an option whose value is empty or lacks is left out.
    """
    for flag in FLAGS:
        if version not in flag.versions:
            continue
        if not flag.value:
            yield flag.name
        elif all(values.get(name) for name in _named(flag.value)):
            yield f"{flag.name}={flag.value.format(**values)}"


def _named(value: str) -> Iterator[str]:
    """Yield the names in the braces of a format."""
    from string import Formatter

    return (name for _, name, _, _ in Formatter().parse(value) if name)
