"""Equivalent pruning: a network that trains at the pruned width as if it had the full one.

In come a coupling and the units that stay, out go weights that are products of matrices, where they
start, and the plain weights they fold into. It must not know how they are trained.
"""
