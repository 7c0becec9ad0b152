"""Run the command line as `python -m obc_onnx`, which `torchrun -m obc_onnx` needs."""

from obc_onnx.cli.main import main

main()
