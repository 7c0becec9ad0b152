"""An ONNX file as a value.

In comes a file, out goes a `Graph` in canonical form: nodes, initializers, shapes, what ONNX
Runtime computes with it, and a file again. Everything that touches onnx-graphsurgeon is here. It
must not know which positions go together, nor what anybody wants to remove.
"""
