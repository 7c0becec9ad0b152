"""One rule for each family of operators; `catalogue` names them all.

In comes a node, out goes what its axes have in common, what it costs, and how torch computes it. A
rule knows its operator alone: no other node, no network, no stage.
"""
