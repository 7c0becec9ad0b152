"""Repair without training: the cut network is brought back towards the original on samples."""
