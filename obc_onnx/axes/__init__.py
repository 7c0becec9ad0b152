"""The algebra of axes: what it means that positions of two axes go together.

In come equalities between expressions over dims, `heads x head_dim` or `64 ++ 32`; out go the
coarsest dims for which all of them hold, and which positions are left once units of a dim are
gone. It knows nothing of ONNX: no tensor, no operator, no file.
"""
