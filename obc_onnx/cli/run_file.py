"""Options of a command that a file says: what `--config` names, outside of its tables."""

from __future__ import annotations

import difflib
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from obc_onnx.cli.wording import long_name
from obc_onnx.errors import RequestError
from obc_onnx.planning.scope import read_config

if TYPE_CHECKING:
    from collections.abc import Sequence

CONFIG = "--config"
_OWN = ("help", "help_all", "config")
"""Parameters that a file says nothing of."""
_PLANS = "ranking"
"""A parameter of the commands that make a plan."""


def with_file(command: click.Command, args: Sequence[str]) -> tuple[list[str], dict[str, str]]:
    """Put the options that a file says in front of those that were given, which go before them.

    Args:
        command: Whose options they are.
        args: As they were given.
    Returns:
        Arguments that stand for both; and, by the parameters whose values the file says, where in
        it, for people.
    Raises:
        RequestError: The file cannot be read, or says what is no option, or limits where no plan is
            made.
    """
    path = _named(args)
    if path is None or not any(CONFIG in option.opts for option in command.params):
        return [*args], {}
    config = read_config(path)
    if config.limits and not any(option.name == _PLANS for option in command.params):
        raise RequestError(
            f"config '{path}' has a table '{next(iter(config.limits))}', which limits widths, but "
            f"`{command.name}` makes no plan"
        )
    seen: set[str] = set()
    said: dict[str, str] = {}
    arguments: list[str] = []
    for key, value in config.options.items():
        option, where = _option(command, path, key), f"config '{path}', '{key}'"
        name = str(option.name)
        if name in seen:
            raise RequestError(f"config '{path}' has '{key}' twice, by another name")
        seen.add(name)
        written = _written(option, where, value)
        names = {*option.opts, *option.secondary_opts}
        if names.isdisjoint(arg.partition("=")[0] for arg in args):
            said[name] = where
            arguments += written
    return [*arguments, *args], said


def _named(args: Sequence[str]) -> Path | None:
    """Return the last file that is named."""
    found = None
    for place, arg in enumerate(args):
        name, sign, rest = arg.partition("=")
        if name == CONFIG and (sign or place + 1 < len(args)):
            found = Path(rest if sign else args[place + 1])
    return found


def _option(command: click.Command, path: Path, key: str) -> click.Option:
    """Find what a key stands for: the long name of an option, with `-` or `_`."""
    name = "--" + key.replace("_", "-")
    options = {
        spelled: own
        for own in command.params
        if isinstance(own, click.Option) and own.name not in _OWN
        for spelled in own.opts
        if spelled.startswith("--")
    }
    if name not in options:
        near = difflib.get_close_matches(name, options, n=1)
        hint = f", but '{near[0].removeprefix('--')}'" if near else ""
        raise RequestError(
            f"config '{path}' has '{key}' outside of any table, where options stand, and "
            f"`{command.name}` has no such one{hint}; limits stand below the pattern of names that "
            f'they are for, such as ["conv1*"]'
        )
    return options[name]


def _written(option: click.Option, where: str, value: Any) -> list[str]:
    """Write an option as on a command line."""
    name = long_name(option)
    if isinstance(value, bool) != option.is_flag:
        wanted = "true or false" if option.is_flag else "a value"
        raise RequestError(f"{where}: it takes {wanted}, found {value!r}")
    if option.is_flag:
        return [name] if value else [*option.secondary_opts[:1]]
    values = value if isinstance(value, list) else [value]
    if not all(isinstance(one, (str, int, float)) for one in values):
        raise RequestError(f"{where}: it takes text and numbers, found {value}")
    if option.multiple:
        return [f"{name}={one}" for one in values]
    joined = "," in (option.metavar or "")
    if len(values) != option.nargs and not joined:
        raise RequestError(f"{where}: it takes {option.nargs} value(s), found {len(values)}")
    if option.nargs > 1:
        return [name, *map(str, values)]
    return [f"{name}={','.join(map(str, values))}"]
