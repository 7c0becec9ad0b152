"""Defaults that the command line and the Python interface share, each written once."""

from typing import Literal, get_args

Ranking = Literal["global", "per-cost", "uniform", "isomorphic"]
RANKINGS: tuple[str, ...] = get_args(Ranking)
FORMER_RANKINGS: dict[str, Ranking] = {"per-mac": "per-cost"}
"""Names that recorded experiments use; with a target of MACs alone they order units alike."""

TARGET_MACS = 0.5
"""Where no other target is given."""
STEPS = 4
ROUND_TO = 1
MIN_CHANNELS = 1
HOLDOUT = 0.2
SCORED_SAMPLES = 512
MEASURED_SAMPLES = 512
"""Held-out samples that the sensitivity of groups is measured on."""
BATCH_SIZE = 64
LEARNING_RATE = 0.01
"""Of sparse learning; that of fine-tuning is found by trials."""
VALIDATION = 0.1
FINETUNE_EPOCHS = 20
"""Of the command that does nothing but train."""
