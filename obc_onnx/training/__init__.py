"""Fine-tuning, and sparse learning in front of it.

In come the original, the cut graph, samples and options; out goes the cut graph with trained
weights, and what each epoch gave. `options` loads no torch. It must not know where a run is kept.
"""
