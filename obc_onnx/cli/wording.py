"""What the library says, in the words of the command that runs.

The library writes in backticks what Python takes, an argument or a field, alone or with a value:
`data`, `criterion='l2'`, `Budget.max_drop`, `Scope(min_channels=1)`. The command line prints the
option in its place: --data, --criterion l2, --max-drop, --min-channels 1. What a command has no
option for stays as it is.
"""

from __future__ import annotations

import ast
import re
import shlex
from collections.abc import Mapping
from dataclasses import fields, is_dataclass, replace
from functools import partial
from typing import Any, TypeVar

import click
from click.core import ParameterSource

from obc_onnx.saliency.options import Scoring

T = TypeVar("T")

PARAMETERS = {
    "explained": "explain",
    "folder": "output",
    "n_samples": "eval_samples",
    "training": "epochs",
    "DataOptions.evaluation": "eval_data",
    "DataOptions.source": "data",
    "EngineOptions.answer": "engine_answer",
    "EngineOptions.command": "engine_command",
    "EngineOptions.device": "engine_device",
    "EngineOptions.optimization": "graph_optimization",
    "Scope.limits": "config",
    "Scoring.loss": "score_loss",
    "Scoring.samples": "score_samples",
    "Scoring.batch_size": "score_batch_size",
    "Vocabulary.ids": "vocabulary",
    "Vocabulary.data": "vocabulary_from",
    "Vocabulary.inputs": "ids_input",
    "Vocabulary.unknown": "unknown_id",
}
"""Parameters of commands that are not called like the argument or the field."""
PREFIXES = {"ImageOptions": "image_"}
"""How parameters begin that are called like a field else."""
GROUPS = {"scoring": ("preset", *(f"Scoring.{field.name}" for field in fields(Scoring)))}
"""Arguments that several options make up: those that were given stand for them."""
_QUOTED = re.compile(r"`([^`]+)`")


def in_options(value: T) -> T:
    """Return what the library gave with the options of the current command in its sentences.

    Args:
        value: A text, or plain data that holds some: dataclasses, lists, tuples, dicts.
    """
    options = {
        str(parameter.name): parameter
        for parameter in click.get_current_context().command.params
        if isinstance(parameter, click.Option)
    }
    changed: T = _changed(value, options)
    return changed


def _changed(value: Any, options: Mapping[str, click.Option]) -> Any:
    if isinstance(value, str):
        return _QUOTED.sub(partial(_option, options=options), value)
    if isinstance(value, Mapping):
        return {key: _changed(one, options) for key, one in value.items()}
    if isinstance(value, (list, tuple)):
        return type(value)(_changed(one, options) for one in value)
    if is_dataclass(value) and not isinstance(value, type):
        own = {f.name: _changed(getattr(value, f.name), options) for f in fields(value) if f.init}
        return replace(value, **own)
    return value


def _option(quoted: re.Match[str], options: Mapping[str, click.Option]) -> str:
    """Return the option that stands for what is in backticks, or that as it is."""
    found = parsed(quoted[1])
    if found is None:
        return quoted[0]
    name, values = found
    if name in GROUPS:
        given = (options.get(parameter_of(part)) for part in GROUPS[name])
        names = [
            _written(option, []) for option in given if option is not None and is_given(option)
        ]
        return ", ".join(names) or quoted[0]
    option = options.get(parameter_of(name))
    return quoted[0] if option is None else _written(option, values)


def is_given(option: click.Parameter) -> bool:
    """Say whether the command that runs was given an option, by its line or by a file."""
    source = click.get_current_context().get_parameter_source(str(option.name))
    return source is ParameterSource.COMMANDLINE


def long_name(option: click.Parameter) -> str:
    """Return the name of an option that people remember."""
    return max(option.opts, key=len)


def parsed(text: str) -> tuple[str, list[Any]] | None:
    """Read `name`, `name=value`, `Class.name` or `Class(name=value)`.

    Returns:
        The argument as `name`, or the field as `Class.name`, and the value, if any; None where it
        is something else.
    """
    try:
        match ast.parse(f"_({text})", mode="eval").body:
            case ast.Call(args=[ast.Name(name)], keywords=[]):
                return name, []
            case ast.Call(args=[ast.Attribute(ast.Name(owner), name)], keywords=[]):
                return f"{owner}.{name}", []
            case ast.Call(args=[], keywords=[ast.keyword(name, value)]):
                return str(name), [ast.literal_eval(value)]
            case ast.Call(
                args=[ast.Call(ast.Name(owner), [], [ast.keyword(name, value)])], keywords=[]
            ):
                return f"{owner}.{name}", [ast.literal_eval(value)]
    except (SyntaxError, ValueError):
        return None
    return None


def parameter_of(name: str) -> str:
    """Return how a command calls an argument, or a field as `Class.name`."""
    owner, _, field = name.rpartition(".")
    return PARAMETERS.get(name, PREFIXES.get(owner, "") + field)


def _written(option: click.Option, values: list[Any]) -> str:
    """Write an option, and a value as it is given there."""
    if values == [False] and option.secondary_opts:
        return option.secondary_opts[0]
    name = long_name(option)
    if not values or option.is_flag:
        return name
    (value,) = values
    if isinstance(value, dict):
        texts = [f"{key}:{_text(one, 'x')}" for key, one in value.items()]
        return " ".join(f"{name} {shlex.quote(text)}" for text in texts)
    return f"{name} {_text(value, ' ' if option.nargs > 1 else ',')}"


def _text(value: Any, between: str) -> str:
    if isinstance(value, tuple):
        return between.join(map(str, value))
    return "none" if value is None else shlex.quote(str(value))
