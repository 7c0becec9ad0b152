"""Samples that a model runs on.

In come arrays, `.npz`, `.tar` shards, pictures or folders; out go `Samples` that fit a graph, with
the axes on which it has them. They stay on disk where they are large. It must not know of channels,
of saliency or of torch.
"""
