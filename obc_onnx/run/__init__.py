"""What the package offers, and the order of the stages, which nothing else knows.

In comes what was asked for, out goes a result. `api` is what Python calls and the command line
too; it must not know of options of a command line.
"""
