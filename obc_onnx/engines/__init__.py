"""Runtimes that models are timed in.

In come model files and inputs, out go seconds of runs and, where an engine tells, of single nodes.
It must not know what a file was cut from.
"""
