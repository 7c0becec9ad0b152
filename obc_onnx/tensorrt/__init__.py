"""What a TensorRT pipeline reads: commands, raw inputs and references, calibration data, checks.

In come two models and samples, out goes a folder of files. It must not know how the smaller model
came about.
"""
