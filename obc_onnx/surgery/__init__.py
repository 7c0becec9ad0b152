"""The graph without units, and the graph with zeros in their place.

In come a coupling and the units that stay, out goes another graph; the one that was given stays as
it is. It must not know why units go. Nothing else makes a changed graph.
"""
