"""Norms, by what their statistics are taken over."""
