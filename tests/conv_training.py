"""Train small nets with every form of convolution; a program, as torch may end the process.

    python tests/conv_training.py THREADS

It prints a digest of each net that was trained.
"""

from __future__ import annotations

import hashlib
import sys

import torch
from helpers import build
from nets import HEAD, NETS
from training.test_finetune import Task

STRIDED = (
    "net (float[N,3,16,16] x) => (float[N,4] y) <float[6,3,3,3] w1, float[12,6,1,1] w2,"
    " float[8,6,1,1] w3, float[12,8,3,3] w4, float[4,12] fc, float[4] fc_b>"
    "{ c1 = Conv<pads=[1,1,1,1]>(x, w1) t1 = Relu(c1) s = Conv<strides=[2,2]>(t1, w2)"
    "  c3 = Conv(t1, w3) t3 = Relu(c3) c4 = Conv<strides=[2,2],pads=[1,1,1,1]>(t3, w4)"
    f"  a = Add(s, c4) last = Relu(a) {HEAD} }}"
)
LIKE_NETS = ("dense", "grouped", "depthwise", "multiplier", "line", "volume", "transposed")
CONVOLUTIONS = {"strided": STRIDED} | {name: NETS[name] for name in LIKE_NETS}


def main() -> None:
    """Train every net, at a rate that trials find."""
    torch.set_num_threads(int(sys.argv[1]))
    for name, text in CONVOLUTIONS.items():
        task = Task(build(text), 40)
        task.train(lr=None, validation=0.2)
        sys.stdout.write(f"{name} {hashlib.sha256(task.folded_bytes()).hexdigest()}\n")


if __name__ == "__main__":
    main()
