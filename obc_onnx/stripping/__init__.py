"""Units that cost and do nothing: which there are, and the graph without them.

In comes a graph, out goes a smaller one that computes the same, and what was found in it. Only
what the graph itself proves counts: no samples and no scores are known here. What proves the
result is not here either, see `verification`.
"""
