"""Library messages speak of arguments, and the command line's of options that exist."""

from __future__ import annotations

import ast
import inspect
import json
import re
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
import pytest
from small import chain, invoke, saved

import obc_onnx
from obc_onnx.cli import wording
from obc_onnx.cli.augment_options import augmentation_of
from obc_onnx.cli.engine_options import engine_of
from obc_onnx.cli.main import cli
from obc_onnx.cli.options import data_of
from obc_onnx.cli.plan_options import budget_of
from obc_onnx.cli.score_options import scoring_of
from obc_onnx.cli.strip import vocabulary_of
from obc_onnx.cli.train_options import training_of
from obc_onnx.cli.wording import in_options

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

PACKAGE = Path(obc_onnx.__file__).parent
FOR_OTHER_PROGRAMS = {PACKAGE / "tensorrt" / f"{name}.py" for name in ("bundle", "flags", "texts")}
"""Modules whose strings are commands and code for other programs, and no messages."""
LIBRARY = [
    path
    for path in sorted(PACKAGE.rglob("*.py"))
    if path.parent.name != "cli" and path not in FOR_OTHER_PROGRAMS
]
FILLED = "FILLED"
"""What stands for a part of a message that is only known when it is written."""
PUBLIC = {name: getattr(obc_onnx, name) for name in obc_onnx.__all__}
FUNCTIONS = {name: value for name, value in PUBLIC.items() if inspect.isfunction(value)}
OPTIONS = (
    *("Augmentation", "Budget", "DataOptions", "EngineOptions", "ImageOptions", "Scope"),
    *("Scoring", "TrainingOptions", "Vocabulary"),
)
ARGUMENTS = {name for f in FUNCTIONS.values() for name in inspect.signature(f).parameters}
FIELDS = {f"{name}.{field.name}" for name in OPTIONS for field in fields(PUBLIC[name])}
WITHOUT_OPTION = {
    *("model", "original", "compressed", "result"),  # what commands take without an option
    *("rules", "budget", "scope"),
    *(
        "Budget.scope",
        "DataOptions.images",
        "TrainingOptions.augmentation",
    ),  # their fields have some
    "TrainingOptions.milestones",
}
"""Arguments and fields that no command has an option for."""
REQUIRED = {
    "compress": ["m.onnx", "-o", "s.onnx"],
    "score": ["m.onnx", "-o", "s.npz"],
    "profile": ["m.onnx", "-o", "c.json"],
    "finetune": ["m.onnx", "-o", "s.onnx", "--plan", "p.json"],
    "sensitivity": ["m.onnx"],
    "verify": ["a.onnx", "b.onnx", "--plan", "p.json"],
    "inspect": ["m.onnx"],
    "strip": ["m.onnx", "-o", "s.onnx"],
}
"""The arguments that commands cannot do without."""
GATHERED: dict[str, Callable[[dict[str, Any]], Any]] = {
    "Augmentation": augmentation_of,
    "Budget": budget_of,
    "DataOptions": data_of,
    "EngineOptions": engine_of,
    "ImageOptions": lambda options: data_of(options).images,
    "Scope": lambda options: budget_of(options).scope,
    "Scoring": scoring_of,
    "TrainingOptions": training_of,
    "Vocabulary": vocabulary_of,
}
"""What makes a value of each class of what was given."""
OPTION = re.compile(r"(?<![\w-])--[a-z]")
TAKES_FIELDS = {"EngineOptions": "profile", "Vocabulary": "strip"}
"""Commands that take the fields of a class; `compress` takes all others."""
OF_ANOTHER_PROGRAM = ("trtexec.py", "board.py")
"""Modules that write options of programs that they run, or write."""
OF_OTHER_PROGRAMS = ("pip install", "tar --dereference")


def texts(path: Path) -> Iterator[str]:
    """Yield the strings of a module that are no docstrings, each with `FILLED` for its holes."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    apart = {id(n.value) for n in ast.walk(tree) if isinstance(n, ast.Expr)}
    inside = {id(v) for n in ast.walk(tree) if isinstance(n, ast.JoinedStr) for v in n.values}
    for node in ast.walk(tree):
        if isinstance(node, ast.JoinedStr):
            yield "".join(v.value if isinstance(v, ast.Constant) else FILLED for v in node.values)
        elif isinstance(node, ast.Constant) and id(node) not in apart | inside:
            yield node.value if isinstance(node.value, str) else ""


def quoted() -> set[str]:
    """Return all that library messages have in backticks."""
    found = {
        part for path in LIBRARY for text in texts(path) for part in re.findall("`(.+?)`", text)
    }
    assert len(found) > 40
    return found - {FILLED}  # arguments of a `Request`, which reads them by the same names


def name_of(part: str) -> str:
    """Return the argument, or the field as `Class.field`; without the parser that is tested."""
    found = re.fullmatch(r"(?:(\w+)(?:\.(?=\w+$)|\((?=.*\)$)))?(\w+)(?:=.+)?", part)
    assert found is not None, part
    return found[2] if found[1] is None else f"{found[1]}.{found[2]}"


def options_of(command: str) -> dict[str, click.Option]:
    found = [p for p in cli.commands[command].params if isinstance(p, click.Option)]
    return {name: option for option in found for name in [*option.opts, *option.secondary_opts]}


def told(text: str, command: str, *arguments: str) -> str:
    """Translate as a command would that was called with arguments."""
    with cli.commands[command].make_context(command, [*REQUIRED[command], *arguments]):
        return in_options(text)


@pytest.mark.parametrize("part", sorted(quoted()))
def test_what_messages_name_is_there_for_python(part: str) -> None:
    name = name_of(part)
    owner, _, field = name.rpartition(".")
    if field == FILLED:
        assert owner in OPTIONS
    else:
        assert name in {*ARGUMENTS, *FIELDS, *FUNCTIONS}


def test_no_library_message_speaks_of_an_option() -> None:
    spoken = [
        text
        for path in LIBRARY
        if path.name not in OF_ANOTHER_PROGRAM
        for text in texts(path)
        if OPTION.search(text) and not any(program in text for program in OF_OTHER_PROGRAMS)
    ]
    assert not spoken


def test_every_argument_and_field_has_an_option_unless_it_is_known_to_have_none() -> None:
    parameters = {p.name for command in cli.commands.values() for p in command.params}
    without = {
        name
        for name in {*ARGUMENTS, *FIELDS}
        if name not in wording.GROUPS and wording.parameter_of(name) not in parameters
    }
    assert without == WITHOUT_OPTION - {"model", "original", "compressed", "result"}


@pytest.mark.parametrize(
    "command", ["compress", "score", "finetune", "sensitivity", "inspect", "profile"]
)
def test_a_name_becomes_an_option_of_the_command_or_stays(command: str) -> None:
    known = options_of(command)
    for name in sorted({*ARGUMENTS, *FIELDS} - WITHOUT_OPTION - {*wording.GROUPS}):
        found = told(f"`{name}`", command)
        expected = wording.parameter_of(name) in {option.name for option in known.values()}
        assert found in known if expected else found == f"`{name}`"


@pytest.mark.parametrize("name", sorted(FIELDS - WITHOUT_OPTION - {"Scope.limits"}))
def test_the_option_of_a_field_is_the_one_that_sets_it(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    owner, _, field = name.partition(".")
    monkeypatch.setattr(PUBLIC[owner], "__post_init__", lambda _: None, raising=False)
    command = TAKES_FIELDS.get(owner, "compress")
    more = [] if owner in TAKES_FIELDS else ["--epochs", "1"]
    with cli.commands[command].make_context(command, [*REQUIRED[command], *more]):
        options = dict(click.get_current_context().params)
    value = ("a value that nothing else has",)
    found = GATHERED[owner](options | {wording.parameter_of(name): value})
    assert getattr(found, field) == value


def test_names_that_differ_are_those_of_arguments_fields_and_parameters() -> None:
    parameters = {p.name for command in cli.commands.values() for p in command.params}
    assert set(wording.PARAMETERS) <= {*ARGUMENTS, *FIELDS}
    assert set(wording.PARAMETERS.values()) <= parameters
    assert all(is_dataclass(PUBLIC[name]) for name in wording.PREFIXES)


@pytest.mark.parametrize(
    ("text", "command", "expected"),
    [
        ("give `data`, or use `criterion='l2'`", "score", "give --data, or use --criterion l2"),
        ("`Scope(min_channels=1)` leaves less", "compress", "--min-channels 1 leaves less"),
        ("`Scope(min_channels=1)`", "score", "`Scope(min_channels=1)`"),
        ("`Scoring.batch_size`", "score", "--score-batch-size"),
        ("`Scoring.batch_size`", "compress", "--score-batch-size"),
        ("`TrainingOptions.batch_size`", "compress", "--batch-size"),
        ("`TrainingOptions.start`", "finetune", "--ep-init"),
        ("`DataOptions.evaluation`", "sensitivity", "--eval-data"),
        ("`ImageOptions(size=(224, 192))`", "score", "--image-size 224 192"),
        ("`ImageOptions(mean=(0.5, 0.25))`", "score", "--image-mean 0.5,0.25"),
        ("`input_shape={'a b': (1, 3), 'c': (2,)}`", "verify",
         "--input-shape 'a b:1x3' --input-shape c:2"),
        ("`batch_axes={'t': None}`", "inspect", "--batch-axis t:none"),
        ("`TrainingOptions(equivalent=False)`", "finetune", "--no-equivalent"),
        ("`Scope(allow_inexact=True)`", "compress", "--allow-inexact"),
        ("`Scope.limits`, `Augmentation.flip`", "compress", "--config, --flip"),
        ("see `inspect`, `a b`, `x = 1; y`, `f(1)(2)`", "compress",
         "see `inspect`, `a b`, `x = 1; y`, `f(1)(2)`"),
        ("'data' and data", "compress", "'data' and data"),
    ],
)  # fmt: skip
def test_backticks_become_options(text: str, command: str, expected: str) -> None:
    assert told(text, command) == expected


def test_an_argument_of_many_options_becomes_those_that_were_given() -> None:
    given = ("--preset", "paper", "--score-batch-size", "8")
    assert told("leave out `scoring`", "compress", *given) == (
        "leave out --preset, --score-batch-size"
    )
    assert told("leave out `scoring`", "compress") == "leave out `scoring`"


def test_errors_notes_and_warnings_are_told_in_the_words_of_each_side(tmp_path: Path) -> None:
    report = obc_onnx.compress(chain()).report
    python = " ".join([*report.notes, *report.warnings])
    assert "give `data`" in python
    assert OPTION.search(python) is None
    small = tmp_path / "small.onnx"
    told = json.loads(invoke("compress", saved(tmp_path), "-o", small, "--json").stdout)
    line = " ".join([*told["notes"], *told["warnings"], told["verdict"]])
    assert "give --data" in line
    assert "`" not in line
    text = invoke("compress", saved(tmp_path), "-o", small, "--force").stdout
    assert "give --data" in text
    assert "`" not in text


def test_an_error_names_the_argument_to_python_and_the_option_to_a_user(tmp_path: Path) -> None:
    with pytest.raises(obc_onnx.RequestError, match=r"give `data`, or use `criterion='l2'`"):
        obc_onnx.score(chain(), criterion="jacobian")
    model = saved(tmp_path)
    result = invoke("score", model, "-o", tmp_path / "s.npz", "--criterion", "jacobian")
    assert "give --data, or use --criterion l2" in result.stderr
