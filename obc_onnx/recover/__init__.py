"""Repair without labels.

In come the original, the cut graph and samples; out goes the cut graph with weights that bring its
outputs nearer to the original's, or as it was where no step did. It must not know of fine-tuning.
"""
