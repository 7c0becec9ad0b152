"""Show what this installation has."""

from __future__ import annotations

import click

from obc_onnx.cli.options import json_option
from obc_onnx.cli.sections import command
from obc_onnx.cli.shared import reports_errors
from obc_onnx.cli.wording import in_options


@command()
@json_option
@reports_errors
def doctor(*, as_json: bool) -> None:
    """Show versions, providers of ONNX Runtime, devices and memory, and what is missing.

    The exit code is 1 where no model can be run.
    """
    from obc_onnx.report.diagnosis import diagnosis_text
    from obc_onnx.run.doctor import diagnose

    found = in_options(diagnose())
    click.echo(found.to_json() if as_json else diagnosis_text(found))
    if found.faults:
        click.get_current_context().exit(1)
