"""Fine-tuning of pruned networks; `options` loads no torch."""
