"""Files that are the same for all models but for a few words, which stand in them as `@WORD@`."""

from __future__ import annotations

LOADER = '''\
"""Samples for Polygraphy: `polygraphy run MODEL --data-loader-script loader.py`."""

import pathlib

import numpy as np

AXES = @AXES@
"""The axis along which each input holds samples; None for one that is given once."""
BATCH = @BATCH@


def load_data():
    """Yield the inputs of one run after the other, as arrays by name."""
    with np.load(pathlib.Path(__file__).with_name("samples.npz")) as stored:
        arrays = dict(stored)
    count = next(arrays[name].shape[axis] for name, axis in AXES.items() if axis is not None)
    for start in range(0, count - BATCH + 1, BATCH):
        places = np.arange(start, start + BATCH)
        yield {
            name: array if AXES[name] is None else array.take(places, AXES[name])
            for name, array in arrays.items()
        }
'''

CALIBRATION = '''\
"""Samples for ONNX Runtime's quantiser: `quantize_static(MODEL, RESULT, Calibration())`."""

from loader import load_data
from onnxruntime.quantization import CalibrationDataReader


class Calibration(CalibrationDataReader):
    """Gives the inputs of one run after the other, and None at the end."""

    def __init__(self):
        self.rewind()

    def get_next(self):
        """Return the inputs of the next run."""
        return next(self._runs, None)

    def rewind(self):
        """Start over."""
        self._runs = load_data()
'''

BUILD = """\
#!/bin/sh
# TensorRT @VERSION@: build an engine and time it@CHECKED@.
# Usage: build_trt@VERSION@.sh [MODEL.onnx]
set -eu
here=$(dirname "$0") default=@MODEL@
model=$(realpath "${1:-$here/$default}")
cd "$here"
name=$(basename "$model" .onnx).trt@VERSION@
engine="$name.plan"
"${TRTEXEC:-trtexec}" @ARGUMENTS@
"""

QUANTISE = """\
#!/bin/sh
# ModelOpt: write a model of @KIND@, which build_trt10.sh and build_trt11.sh take.
# It pins versions of onnx and ONNX Runtime: install nvidia-modelopt[onnx] apart from others.
# Usage: quantise_@KIND@.sh [MODEL.onnx]
set -eu
here=$(dirname "$0") default=@MODEL@
model=$(realpath "${1:-$here/$default}")
cd "$here"
result=$(basename "$model" .onnx).@KIND@.onnx
@COMMAND@
"""

COMMANDS = {
    "fp16": """\
"${PYTHON:-python}" -m modelopt.onnx.autocast --onnx_path "$model" --output_path "$result" \\
  --low_precision_type fp16 --keep_io_types --calibration_data run.npz""",
    "int8": """\
"${PYTHON:-python}" -m modelopt.onnx.quantization --onnx_path "$model" --output_path "$result" \\
  --quantize_mode int8 --high_precision_dtype fp16 --calibration_data samples.npz \\
  --calibration_eps cpu""",
}
"""What makes a model of lower precision, by the name of that precision.

Source: `python -m modelopt.onnx.autocast --help`, and that of `modelopt.onnx.quantization`, of
ModelOpt 0.47.
"""

COMPARE = """\
#!/bin/sh
# Polygraphy: hold @ONE@ against @OTHER@.
# Usage: @SCRIPT@.sh [MODEL.onnx]
set -eu
here=$(dirname "$0") default=@MODEL@
model=$(realpath "${1:-$here/$default}")
cd "$here"
polygraphy run @FIRST@ --data-loader-script loader.py --save-outputs @SCRIPT@.json
polygraphy run "$model" @SECOND@ --data-loader-script loader.py --load-outputs @SCRIPT@.json \\
  --compare cosine_similarity --cosine-similarity-threshold @THRESHOLDS@
"""


def filled(text: str, **words: object) -> str:
    """Put words in their places."""
    for word, value in words.items():
        text = text.replace(f"@{word}@", str(value))
    return text
