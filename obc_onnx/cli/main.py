"""The command line: its commands, each in a module of its own."""

from __future__ import annotations

import click

from obc_onnx.cli.compress import apply, compress, finetune
from obc_onnx.cli.doctor import doctor
from obc_onnx.cli.export_trt import export_trt
from obc_onnx.cli.inspect import inspect
from obc_onnx.cli.plan import plan, sensitivity
from obc_onnx.cli.profile import profile
from obc_onnx.cli.score import score
from obc_onnx.cli.sections import HELP
from obc_onnx.cli.strip import strip
from obc_onnx.cli.sweep import sweep
from obc_onnx.cli.twin import twin
from obc_onnx.cli.verify import verify
from obc_onnx.cli.watch import watched
from obc_onnx.version import __version__


@click.group(context_settings=HELP)
@click.version_option(__version__, prog_name="obc-onnx")
def cli() -> None:
    """Make a deployed ONNX model smaller and faster, and prove the result."""


COMMANDS = (
    *(inspect, compress, score, profile, plan, apply, finetune),
    *(sweep, sensitivity, strip, verify, twin, export_trt, doctor),
)
for command in COMMANDS:
    cli.add_command(command)


def main() -> None:
    """Run the command line, and let its death by a signal be told."""
    with watched():
        cli(prog_name="obc-onnx")
