"""How to fine-tune; loads no torch."""

from __future__ import annotations

from dataclasses import dataclass, replace

from obc_onnx.defaults import BATCH_SIZE, LEARNING_RATE


@dataclass(frozen=True)
class TrainingOptions:
    """How to fine-tune.

    Attributes:
        epochs: Passes over the samples.
        batch_size: Samples per step.
        lr: Largest learning rate; it falls to zero along half a cosine.
        warmup: Share of the steps over which it rises linearly.
        momentum: Of SGD with Nesterov's correction.
        weight_decay: Of weights with more than one axis; matrices have none.
        matrix_lr: Learning rate of compressors and decompressors over that of weights.
        temperature: Of the distillation of class logits.
        label_share: Weight of the cross entropy against the distillation, where there are labels.
        seed: Of the order of samples.
        device: Where torch runs.
    """

    epochs: int
    batch_size: int = BATCH_SIZE
    lr: float = LEARNING_RATE
    warmup: float = 0.05
    momentum: float = 0.9
    weight_decay: float = 5e-4
    matrix_lr: float = 0.5
    temperature: float = 4.0
    label_share: float = 0.5
    seed: int = 0
    device: str = "cpu"


def training_options(
    training: TrainingOptions | int, seed: int, device: str
) -> TrainingOptions | None:
    """Complete what a caller gave: options, or a number of epochs of which 0 means none."""
    if isinstance(training, int):
        return TrainingOptions(epochs=training, seed=seed, device=device) if training else None
    return replace(training, seed=seed, device=device)
