"""The same network in torch.

In come a graph and its coupling, out goes a module that computes the same, that can be watched as
it runs, and that gives its weights back. Nothing is trained or scored here.
"""
