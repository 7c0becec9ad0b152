"""Operators on quantised tensors, and those that quantise."""
