"""Attention, of the standard and of ONNX Runtime, and what goes with it."""
