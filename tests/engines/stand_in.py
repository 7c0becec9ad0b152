"""A program that looks like trtexec from outside, and times through ONNX Runtime.

It takes the flags that trtexec has, and no others, and writes what trtexec writes: the banner and
log lines of samples/common/sampleEngines.cpp, and the files of samples/common/sampleReporting.cpp in
github.com/NVIDIA/TensorRT. STAND_IN_FAULT names what goes wrong, STAND_IN_VERSION its version.
"""

import json
import os
import re
import signal
import sys
import time
from pathlib import Path

import numpy as np
import onnx
import onnxruntime

FLAGS = {
    "onnx", "saveEngine", "loadEngine", "minShapes", "optShapes", "maxShapes", "shapes",
    "skipInference", "profilingVerbosity", "exportLayerInfo", "exportTimes", "exportProfile",
    "separateProfileRun", "loadInputs", "warmUp", "duration", "iterations", "fp16",
}  # fmt: skip
FUSED = {"Relu", "Clip", "BatchNormalization", "Add"}
FAULT = os.environ.get("STAND_IN_FAULT", "")
VERSION = os.environ.get("STAND_IN_VERSION", "101300")


def log(kind: str, text: str) -> None:
    out = sys.stderr if kind == "E" else sys.stdout
    out.write(f"[11/30/2026-12:00:00] [{kind}] {text}\n")


def fail(text: str) -> None:
    log("E", text)
    sys.stdout.write(f"&&&& FAILED TensorRT.trtexec [TensorRT v{VERSION}] # trtexec\n")
    sys.exit(1)


def main() -> None:
    arguments = sys.argv[1:]
    if FAULT != "no banner":
        sys.stdout.write(
            f"&&&& RUNNING TensorRT.trtexec [TensorRT v{VERSION}] [b36] # trtexec {' '.join(arguments)}\n"
        )
    flags = dict(re.fullmatch(r"--(\w+)(?:=(.*))?", one).groups() for one in arguments)
    for name in flags.keys() - FLAGS:
        fail(f"Unknown option: --{name} ")
    log("I", "Selected Device: NVIDIA Stand-In")
    (build if "onnx" in flags else infer)(flags)


def build(flags: dict[str, str]) -> None:
    model = onnx.load(flags["onnx"], load_external_data=False)
    is_open = any(
        not size.HasField("dim_value")
        for port in model.graph.input
        for size in port.type.tensor_type.shape.dim
    )
    if is_open != ("optShapes" in flags):
        fail("Static model does not take explicit shapes since the shape of inference tensors will be determined by the model itself")  # fmt: skip
    if FAULT == "build":
        fail("Error[4]: ModelImporter.cpp: no plugin found for node 'p' of type Strange")
    if FAULT == "killed":
        os.kill(os.getpid(), signal.SIGKILL)
    groups: list[list[str]] = []
    for node in model.graph.node:
        if node.op_type in FUSED and groups:
            groups[-1].append(node.name)
        else:
            groups.append([node.name])
    names = [" + ".join(group) for group in groups]
    layers = [
        {"Name": name, "LayerType": "Convolution", "Metadata": "\x1f".join(f"[ONNX Layer: {one}]" for one in group)}
        for name, group in zip(names, groups, strict=True)
    ]  # fmt: skip
    info = {"Layers": names if FAULT == "no details" else layers, "Bindings": ["x", "y"]}
    info = {"Nothing": 1} if FAULT == "no layers" else info
    Path(flags["exportLayerInfo"]).write_text(json.dumps(info))
    Path(flags["saveEngine"]).write_text(json.dumps({"onnx": flags["onnx"], "layers": names}))


def infer(flags: dict[str, str]) -> None:
    plan = json.loads(Path(flags["loadEngine"]).read_text())
    session = onnxruntime.InferenceSession(plan["onnx"], providers=["CPUExecutionProvider"])
    shapes = dict(one.split(":") for one in flags.get("shapes", "").split(",") if one)
    files = dict(one.split(":", 1) for one in flags["loadInputs"].split(","))
    feed = {}
    for port in session.get_inputs():
        sizes = map(int, shapes[port.name].split("x")) if port.name in shapes else port.shape
        feed[port.name] = np.fromfile(files[port.name], np.float32).reshape(*sizes)
    times = []
    for _ in range(int(flags["iterations"])):
        start = time.perf_counter()
        session.run(None, feed)
        times.append(1e3 * (time.perf_counter() - start))
    if "exportTimes" in flags and FAULT != "no times":
        Path(flags["exportTimes"]).write_text(times_json(times))
    if "exportProfile" in flags:
        Path(flags["exportProfile"]).write_text(profile_json(plan["layers"], times))


def times_json(times: list[float]) -> str:
    if FAULT == "torn":
        return '[\n{ "startEnqMs" : 0.1'
    field = "gpuMs" if FAULT == "field" else "computeMs"
    rows = [
        f'{{ "startEnqMs" : 0, "endEnqMs" : 0.1, "h2dMs" : 0.2, "{field}" : {ms}, "d2hMs" : 0.2, "latencyMs" : {ms + 0.4} }}'
        for ms in times
    ]
    return "[\n  " + "\n, ".join(rows) + "\n]\n"


def profile_json(layers: list[str], times: list[float]) -> str:
    each = float(np.median(times)) / len(layers)
    rows = [f'{{ "count" : {len(times)} }}']
    rows += [
        f'{{ "name" : "{name}", "timeMs" : {each * len(times)}, "averageMs" : {each}, "medianMs" : {each}, "percentage" : nan }}'
        for name in layers
    ]
    return "[\n  " + "\n, ".join(rows) + "\n]\n"


if __name__ == "__main__":
    main()
