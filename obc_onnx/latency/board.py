"""The scripts of a kit, which run where nothing of this package is; `@WORD@` stands for a value."""

from __future__ import annotations

import shlex
from typing import TYPE_CHECKING

from obc_onnx.engines.engine import PROGRAM_TURNS, WARM_UP_SECONDS, Loaded

if TYPE_CHECKING:
    from obc_onnx.engines.trtexec import Flags

_SECONDS, _MOST_TURNS, _TRACED = 2, 300, 10
"""How long a design is timed, in how many turns at most, and how many runs are traced."""

ONNXRUNTIME = '''\
"""Time the models of this kit in ONNX Runtime, and write what it says into onnxruntime/.

    python3 time_onnxruntime.py [--threads N] [--provider NAME [--provider-option NAME=VALUE]...]
        [--optimization none|basic|extended|all]

Needs onnxruntime and numpy alone. It ends with the file onnxruntime/times.json.
"""

import argparse
import hashlib
import json
import os
import pathlib
import platform
import shutil
import time

import numpy as np
import onnxruntime

HERE = pathlib.Path(__file__).resolve().parent
OUT = HERE / "onnxruntime"
LEVELS = {
    "none": onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL,
    "basic": onnxruntime.GraphOptimizationLevel.ORT_ENABLE_BASIC,
    "extended": onnxruntime.GraphOptimizationLevel.ORT_ENABLE_EXTENDED,
    "all": onnxruntime.GraphOptimizationLevel.ORT_ENABLE_ALL,
}


def main():
    """Time every design in turns with the whole model, which is the first."""
    asked = arguments()
    kit = json.loads((HERE / "kit.json").read_text(encoding="utf-8"))
    names = ["kit.json", *kit["files"]]
    files = {name: hashlib.sha256((HERE / name).read_bytes()).hexdigest() for name in names}
    feed = {
        name: np.fromfile(HERE / port["file"], port["dtype"]).reshape(kit["shapes"][name])
        for name, port in kit["inputs"].items()
    }
    shutil.rmtree(OUT, ignore_errors=True)
    OUT.mkdir()
    designs = [f"design{place:02}" for place in range(len(kit["designs"]))]
    whole = opened(designs[0], asked)
    warm_up(whole, feed)
    races = []
    for design in designs:
        narrow = opened(design, asked)
        warm_up(narrow, feed)
        races.append(raced(whole, narrow, feed))
        trace(design, asked, feed)
        print(f"{design}: {1e3 * np.median(races[-1]['after']):.4g} ms", flush=True)
    said = {name: value for name, value in vars(asked).items() if value}
    found = {"files": files, "version": onnxruntime.__version__, "device": processor()}
    found |= {"options": said, "traced_from": @WARM@, "races": races}
    (OUT / "times.part").write_text(json.dumps(found), encoding="utf-8")
    os.replace(OUT / "times.part", OUT / "times.json")


def arguments():
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\\n")[0])
    parser.add_argument("--threads", type=int)
    parser.add_argument("--provider")
    parser.add_argument("--provider-option", action="append", default=[], metavar="NAME=VALUE")
    parser.add_argument("--optimization", choices=LEVELS)
    asked = parser.parse_args()
    asked.provider_options = dict(one.split("=", 1) for one in asked.provider_option)
    del asked.provider_option
    return asked


def opened(design, asked, traced=False):
    """Open a session, of that provider alone."""
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    options.graph_optimization_level = LEVELS[asked.optimization or "all"]
    if asked.threads:
        options.intra_op_num_threads = asked.threads
    if traced:
        options.enable_profiling = True
        options.profile_file_prefix = str(OUT / design)
    provider = asked.provider or "CPUExecutionProvider"
    path = str(HERE / f"{design}.onnx")
    session = onnxruntime.InferenceSession(path, options, [(provider, asked.provider_options)])
    if provider not in session.get_providers():
        raise SystemExit(f"ONNX Runtime fell back from {provider}: its libraries are not found")
    return session


def seconds(session, feed):
    """Make one run."""
    start = time.perf_counter()
    session.run(None, feed)
    return time.perf_counter() - start


def warm_up(session, feed):
    """Run until caches are full and clocks of processors have risen."""
    start = time.perf_counter()
    seconds(session, feed)
    while time.perf_counter() - start < @WARM_UP@:
        seconds(session, feed)


def raced(whole, narrow, feed):
    """Run both in turns; which one is first changes with each turn."""
    start = time.perf_counter()
    before, after = [], []
    while len(after) < @TURNS@ or (
        len(after) < @MOST@ and time.perf_counter() - start < @SECONDS@
    ):
        for session, times in ((whole, before), (narrow, after))[:: -1 if len(after) % 2 else 1]:
            times.append(seconds(session, feed))
    return {"before": before, "after": after}


def trace(design, asked, feed):
    """Let the profiler write what single nodes take."""
    session = opened(design, asked, traced=True)
    for _ in range(@TRACED@):
        session.run(None, feed)
    os.replace(session.end_profiling(), OUT / f"{design}.trace.json")


def processor():
    """Return the name of this machine's processor."""
    info = pathlib.Path("/proc/cpuinfo")
    lines = info.read_text(errors="replace").splitlines() if info.is_file() else []
    named = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return (named or [platform.processor() or platform.machine()])[0]


if __name__ == "__main__":
    main()
'''

TRTEXEC = """\
#!/bin/sh
# Time the models of this kit with trtexec of TensorRT 10 or newer, and write what it says into
# trtexec/. It ends with the file trtexec/done.
# Usage: sh time_trtexec.sh, or with arguments TRTEXEC='trtexec --fp16' sh time_trtexec.sh
set -eu
cd "$(dirname "$0")"
trtexec=${TRTEXEC:-trtexec}
rm -rf trtexec
mkdir trtexec
printf '%s' "$trtexec" > trtexec/command
sha256sum @FILES@ > trtexec/files.sha256

run() {  # LOG ARGUMENT...: let trtexec write into a log
  log=$1
  shift
  $trtexec "$@" >> "$log" 2>&1 || { echo "trtexec failed: see $log" >&2; exit 1; }
}

build() {  # DESIGN
  mkdir "trtexec/$1"
  run "trtexec/$1/build.log" @BUILD@
}

time_one() {  # DESIGN FILE
  run "trtexec/$1/run.log" @TIME@
}

for design in @DESIGNS@; do
  echo "design$design"
  build "$design"
  for turn in @TURNS@; do
    time_one @WHOLE@ "trtexec/$design/before$turn.json"
    time_one "$design" "trtexec/$design/after$turn.json"
  done
  run "trtexec/$design/run.log" @PROFILE@
  [ "$design" = @WHOLE@ ] || rm "trtexec/$design/model.plan"
done
: > trtexec/done
"""


def onnxruntime_script() -> str:
    """Return the script for ONNX Runtime."""
    values = {
        "WARM_UP": WARM_UP_SECONDS,
        "TURNS": Loaded.fewest_turns,
        "MOST": _MOST_TURNS,
        "SECONDS": _SECONDS,
        "TRACED": _TRACED,
        "WARM": _TRACED // 2,
    }
    return _filled(ONNXRUNTIME, values)


def trtexec_script(flags: Flags, designs: list[str], files: list[str]) -> str:
    """Return the script for trtexec.

    Args:
        flags: Shapes and inputs.
        designs: What stands for each design in the names of its files; the whole model is first.
        files: What is hashed.
    """
    folder = "trtexec/$1"
    values = {
        "FILES": " ".join(files),
        "DESIGNS": " ".join(designs),
        "WHOLE": designs[0],
        "TURNS": " ".join(map(str, TURNS)),
        "BUILD": _in_shell(flags.building("design$1.onnx", folder)),
        "TIME": _in_shell(flags.timing(folder, "$2")),
        "PROFILE": _in_shell(flags.profiling("trtexec/$design")),
    }
    return _filled(TRTEXEC, values)


TURNS = range(1, PROGRAM_TURNS + 1)
"""Of trtexec, for each design."""


def _in_shell(arguments: list[str]) -> str:
    """Write arguments; those with a variable are file names of the kit, and hold no quotes."""
    return " ".join(f'"{one}"' if "$" in one else shlex.quote(one) for one in arguments)


def _filled(text: str, values: dict[str, str] | dict[str, float]) -> str:
    for word, value in values.items():
        text = text.replace(f"@{word}@", str(value))
    return text
