"""Which positions of which axes go together, in all of a graph.

In come a graph and the rules, out goes a `Coupling`: groups of units, where each lies, what its
removal slices, masks and costs, and why the rest is frozen. Nothing is cut here, and no samples or
scores are known.
"""
