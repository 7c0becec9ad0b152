"""Run the command line as `python -m obc_onnx`, which `torchrun -m obc_onnx` needs."""

from obc_onnx.cli.main import cli

cli(prog_name="obc-onnx")
