"""The command line: parse, call, print.

One file for each command or family of commands. Everything heavy is imported inside of commands.
Nothing is decided here that Python could not ask for. `cli` is the click group of all commands.
"""

from obc_onnx.cli.main import cli

__all__ = ["cli"]
