"""Which parameters learn at which rate, and the average of weights over steps."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch.optim.swa_utils import get_ema_multi_avg_fn

if TYPE_CHECKING:
    from torch import Tensor, nn

    from obc_onnx.equivalent.network import EquivalentTwin
    from obc_onnx.training.options import OptimizerName, TrainingOptions

_SECOND_BETA = 0.999


def make_optimizer(
    student: EquivalentTwin, options: TrainingOptions, name: OptimizerName
) -> torch.optim.Optimizer:
    """Group parameters: weights that decay, those that do not, compressors and decompressors.

    The rate is that of no step: `set_rate` comes first.
    """
    decayed = [p for p in student.decayed() if p.ndim > 1]
    listed = {id(p) for p in decayed}
    groups: list[dict[str, Any]] = [
        {"params": decayed, "weight_decay": options.weight_decay, "share": 1.0},
        {
            "params": [p for p in student.weights() if id(p) not in listed],
            "weight_decay": 0.0,
            "share": 1.0,
        },
        {
            "params": list(student.matrices()),
            "weight_decay": options.matrix_decay,
            "share": options.matrix_lr,
        },
    ]
    momentum = options.momentum
    if name == "adamw":
        return torch.optim.AdamW(groups, lr=0.0, betas=(momentum, _SECOND_BETA))
    return torch.optim.SGD(groups, lr=0.0, momentum=momentum, nesterov=momentum > 0)


def set_rate(optimizer: torch.optim.Optimizer, lr: float) -> None:
    """Give every group its share of a learning rate."""
    for group in optimizer.param_groups:
        group["lr"] = lr * group["share"]


class Average:
    """An exponential moving average of all that a network holds, norm statistics included.

    The first steps count fully: the decay is min(decay, (1 + n) / (10 + n)) at step n, so that the
    start of training is soon forgotten.

    Args:
        network: To average.
        decay: Per step.
    """

    def __init__(self, network: nn.Module, decay: float) -> None:
        self._network, self._decay, self.steps = network, decay, 0
        self.state = copy_of(network.state_dict())

    def restore(self, state: dict[str, Tensor], steps: int) -> None:
        """Go on from a state that was saved."""
        self.steps = steps
        for name, value in state.items():
            self.state[name].copy_(value)

    @torch.no_grad()
    def update(self) -> None:
        """Take the state after a step in."""
        self.steps += 1
        decay = min(self._decay, (1 + self.steps) / (10 + self.steps))
        current = self._network.state_dict()
        pairs = [(own, current[name]) for name, own in self.state.items()]
        floats = [(own, new) for own, new in pairs if own.is_floating_point()]
        average = get_ema_multi_avg_fn(decay)  # type: ignore[no-untyped-call]
        if floats:
            average([own for own, _ in floats], [new for _, new in floats], self.steps)
        for own, new in pairs:
            if not own.is_floating_point():
                own.copy_(new)


def copy_of(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Copy every tensor of a state."""
    return {name: value.detach().clone() for name, value in state.items()}
