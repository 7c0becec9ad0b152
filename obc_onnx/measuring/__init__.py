"""What is measured of a model: outputs, errors, accuracy, metrics, noise, milliseconds.

In come graphs and samples, out go numbers, each with its scale and with padding left out. It must
not know how a graph came about, and changes none.
"""
