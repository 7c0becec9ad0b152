"""Defaults that the command line and the Python interface share, each written once."""

TARGET_MACS = 0.5
STEPS = 4
ROUND_TO = 1
HOLDOUT = 0.2
SCORED_SAMPLES = 512
BATCH_SIZE = 64
LEARNING_RATE = 0.01
VALIDATION = 0.1
FINETUNE_EPOCHS = 20
"""Of the command that does nothing but train."""
