"""Checks that can fail.

In come the original, a result and its plan; out goes what was compared, how close it came and what
was allowed. Nothing is written before they hold, and nothing is mended here.
"""
