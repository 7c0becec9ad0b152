"""Options of the command line that say how to fine-tune, and what they become."""

from __future__ import annotations

from dataclasses import fields
from typing import TYPE_CHECKING, Any

import click

from obc_onnx.cli.augment_options import augment_options, augmentation_of
from obc_onnx.cli.options import FILE, combined
from obc_onnx.errors import RequestError
from obc_onnx.training.options import (
    FIELDS,
    NORMS,
    OPTIMIZERS,
    PRECISIONS,
    PRESETS,
    SCHEDULES,
    SPARSE,
    STARTS,
    TrainingOptions,
    parse_loss,
)

if TYPE_CHECKING:
    from collections.abc import Callable

_SHARE = click.FloatRange(0, 1, max_open=True)
_AMOUNT = click.FloatRange(0)
_ABOVE_ZERO = click.FloatRange(0, min_open=True)


def read_loss(
    _context: click.Context, _parameter: click.Parameter, value: str | None
) -> tuple[tuple[str, float], ...] | None:
    """Read `kd:0.5,ce:0.5`."""
    if value is None:
        return None
    try:
        return parse_loss(value)
    except RequestError as error:
        raise click.BadParameter(str(error)) from error


def _told(field: str, text: str) -> str:
    """Add the default, which is written once, to a help text."""
    value = getattr(TrainingOptions, field)
    return text if value is None else f"{text} [{value}]"


def _number(flag: str, field: str, kind: Any, text: str) -> Callable[[Any], Any]:
    return click.option(flag, field, type=kind, help=_told(field, text))


def training_options(*, epochs: int) -> Callable[[Any], Any]:
    """Return the options that say how to train.

    Args:
        epochs: How many by default; none where a command may do without.
    """
    return combined(
        click.option(
            "--epochs",
            type=click.IntRange(1 if epochs else 0),
            default=epochs,
            show_default=True,
            help="Passes of fine-tuning." if epochs else "Passes of fine-tuning; 0 only cuts.",
        ),
        _HOW,
    )


_HOW = combined(
    click.option(
        "--train-preset",
        type=click.Choice(list(PRESETS)),
        help="Numbers of the paper's scripts, which the options below may change.",
    ),
    _number(
        "--batch-size",
        "batch_size",
        click.IntRange(2),
        "Samples per step. [64; down to 16 where they are few and trials find the rate]",
    ),
    _number("--accumulate", "accumulate", click.IntRange(1), "Passes that make up a step."),
    _number("--lr", "lr", _ABOVE_ZERO, "Largest learning rate. [found by trials]"),
    _number(
        "--norms",
        "norms",
        click.Choice(NORMS),
        "Statistics that norms train with. [found by trials; batch with --lr]",
    ),
    _number(
        "--optimizer",
        "optimizer",
        click.Choice(OPTIMIZERS),
        "What steps. [adamw where the original alone teaches and trials find the rate, else sgd]",
    ),
    _number("--schedule", "schedule", click.Choice(SCHEDULES), "How the rate falls."),
    _number("--warmup", "warmup", _SHARE, "Share of the steps over which the rate rises."),
    _number("--momentum", "momentum", _SHARE, "Of SGD; the first beta of AdamW."),
    _number("--weight-decay", "weight_decay", _AMOUNT, "Of weights, not of biases and norms."),
    _number("--clip", "clip", _ABOVE_ZERO, "Largest norm of the gradient."),
    _number("--ema", "ema", _SHARE, "Decay of an average of the weights, the result then."),
    click.option(
        "--equivalent/--no-equivalent",
        default=None,
        help="Whether compressors and decompressors learn. [with --loss ce]",
    ),
    _number("--ep-init", "start", click.Choice(STARTS), "What decompressors start from."),
    _number("--matrix-lr", "matrix_lr", _AMOUNT, "Rate of compressors and decompressors."),
    _number("--matrix-decay", "matrix_decay", _AMOUNT, "Weight decay of those."),
    click.option(
        "--unfold-norms/--no-unfold-norms",
        default=None,
        help="Train with a norm behind every convolution that has none. [no]",
    ),
    click.option(
        "--loss",
        callback=read_loss,
        metavar="NAME:WEIGHT,...",
        help="Of ce, kd, mse, cosine, smooth-l1, FILE.py:FUNCTION. [ce:0.5,kd:0.5 with labels]",
    ),
    _number("--temperature", "temperature", _ABOVE_ZERO, "Of the distillation of classes."),
    _number("--label-smoothing", "label_smoothing", _SHARE, "Share spread over all classes."),
    _number("--mixup", "mixup", _AMOUNT, "Strength of blending two samples."),
    _number("--cutmix", "cutmix", _AMOUNT, "Strength of putting patches of others in."),
    _number("--validation", "validation", _SHARE, "Share that chooses the best epoch."),
    _number("--patience", "patience", click.IntRange(1), "Epochs without a better one."),
    _number("--precision", "precision", click.Choice(PRECISIONS), "Of safe arithmetic."),
    click.option(
        "--sparse-epochs",
        type=click.IntRange(0),
        default=0,
        show_default=True,
        help="Passes of sparse learning before units are scored and cut.",
    ),
    _number("--sparse-reg", "sparse_reg", _AMOUNT, "How hard that pulls at weak units."),
    _number("--sparse-by", "sparse_by", click.Choice(SPARSE), "What tells weak units."),
    augment_options,
    click.option("--run-dir", type=FILE, help="Keep plan, checkpoints and metrics here."),
    click.option("--resume", is_flag=True, help="Go on with the run that is there."),
)


def training_of(options: dict[str, Any]) -> TrainingOptions | int:
    """Gather what says how to train; 0 does not."""
    preset = PRESETS[options["train_preset"]] if options["train_preset"] else {}
    given = {field: options[field] for field in FIELDS if options.get(field) is not None}
    changes = {"augmentation": augmentation_of(options)}
    values: dict[str, Any] = {**preset, **given, **changes}
    if options["epochs"] or options["sparse_epochs"]:
        return TrainingOptions(**values)
    usual = {field.name: field.default for field in fields(TrainingOptions)}
    idle = [name for name, value in values.items() if name != "epochs" and value != usual[name]]
    if idle:
        named = ", ".join(idle).replace("_", " ")
        raise RequestError(f"nothing is trained, so leave out {named}, or give --epochs")
    return 0
