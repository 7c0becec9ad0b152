"""How to fine-tune: names and numbers that the command line and Python share; loads no torch."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Literal, get_args

from obc_onnx.errors import RequestError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from obc_onnx.samples.augmentation import Augmentation

OptimizerName = Literal["sgd", "adamw"]
ScheduleName = Literal["cosine", "step", "constant"]
PrecisionName = Literal["float32", "bfloat16", "float16"]
StartName = Literal["select", "channel-ls"]
SparseName = Literal["magnitude", "jacobian"]
NormsName = Literal["stored", "batch"]

OPTIMIZERS: tuple[OptimizerName, ...] = get_args(OptimizerName)
SCHEDULES: tuple[ScheduleName, ...] = get_args(ScheduleName)
PRECISIONS: tuple[PrecisionName, ...] = get_args(PrecisionName)
STARTS: tuple[StartName, ...] = get_args(StartName)
SPARSE: tuple[SparseName, ...] = get_args(SparseName)
NORMS: tuple[NormsName, ...] = get_args(NormsName)

BATCH_SIZE, LEAST_BATCH_SIZE = 64, 16
_STEPS = 32
"""Steps of a pass that are worth smaller batches."""
LEARNING_RATE = 0.01
"""Of sparse learning; that of fine-tuning is found by trials."""
VALIDATION = 0.1
FINETUNE_EPOCHS = 20
"""Of the command that does nothing but train."""
LABELS_AND_TEACHER = (("ce", 0.5), ("kd", 0.5))
"""The loss where there are labels, half and half as in the paper."""
LOSSES = ("ce", "kd", "mse", "cosine", "smooth-l1")
"""Names that a loss may be made of, besides a user's `FILE.py:FUNCTION`."""
_AMOUNTS = (
    *("weight_decay", "workers", "matrix_lr", "matrix_decay", "mixup", "cutmix"),
    *("sparse_epochs", "sparse_reg"),
)
"""Fields that may be 0."""
_OF_MATRICES = ("start", "matrix_lr", "matrix_decay")
"""Fields that say something about compressors and decompressors."""
_LARGEST = 3.4028235e38
"""What float32 holds."""


@dataclass(frozen=True)
class TrainingOptions:
    """How to fine-tune.

    Attributes:
        epochs: Passes over the samples; 0 only where there is sparse learning.
        batch_size: Samples per step, of all processes together; None is what `samples_per_step`
            says.
        accumulate: Passes that make up one step; a step then sees as many times the batch size.
        lr: Largest learning rate; None finds one by short trials (`trial`), and is
            `LEARNING_RATE` in sparse learning.
        norms: Which statistics batch norms train with: those that they store, which then stay, or
            those of each batch. None is found by the same trials, and is "batch" where the rate is
            given.
        optimizer: "sgd" has Nesterov's correction; None is what `optimizer_for` says.
        schedule: How the rate falls: half a cosine to zero, to a tenth at each of `milestones`, or
            not at all.
        warmup: Share of the steps over which it rises linearly.
        milestones: Shares of the steps.
        momentum: Of SGD; the first beta of AdamW.
        weight_decay: Of weights with more than one axis.
        clip: Largest norm of the gradient of all parameters; None lets it be.
        equivalent: Whether compressors and decompressors learn; otherwise weights are sliced. None
            lets them learn where labels alone teach, or where something is said about them.
        start: What decompressors start from: the kept units, or least squares (`starts`).
        matrix_lr: Learning rate of compressors and decompressors over that of weights.
        matrix_decay: Their weight decay.
        loss: Names out of `LOSSES` or a user's function, each with its weight. Empty takes
            `LABELS_AND_TEACHER` where there are labels, and the distance to the original's outputs
            where there are none.
        temperature: Of the distillation of class logits.
        label_smoothing: Share of each label that is spread over all classes.
        mixup: Of the Beta distribution that blends two samples; 0 does not.
        cutmix: The same, for a patch of one sample in another.
        ema: Decay per step of the average of weights that becomes the result; None takes the last.
        validation: Share of the samples that does not train, and chooses the best epoch; 0 takes
            the last epoch.
        patience: Epochs without a better one after which training ends; None goes to the end.
        unfold_norms: Whether folded convolutions train with a norm behind them.
        sparse_epochs: Passes of sparse learning before units are scored; it takes all samples, and
            its last state.
        sparse_reg: Its strength.
        sparse_by: What it spares: units of large weights, or those that the loss depends on.
        augmentation: What changes samples on the way, each time in another way.
        workers: Processes that read samples.
        precision: Of the arithmetic that torch's autocast finds safe.
    """

    epochs: int
    batch_size: int | None = None
    accumulate: int = 1
    lr: float | None = None
    norms: NormsName | None = None
    optimizer: OptimizerName | None = None
    schedule: ScheduleName = "cosine"
    warmup: float = 0.05
    milestones: tuple[float, ...] = (0.6, 0.8)
    momentum: float = 0.9
    weight_decay: float = 5e-4
    clip: float | None = None
    equivalent: bool | None = None
    start: StartName = "select"
    matrix_lr: float = 0.5
    matrix_decay: float = 0.0
    loss: tuple[tuple[str, float], ...] = ()
    temperature: float = 4.0
    label_smoothing: float = 0.0
    mixup: float = 0.0
    cutmix: float = 0.0
    ema: float | None = None
    validation: float = VALIDATION
    patience: int | None = None
    unfold_norms: bool = False
    sparse_epochs: int = 0
    sparse_reg: float = 5e-4
    sparse_by: SparseName = "magnitude"
    augmentation: Augmentation | None = None
    workers: int = 0
    precision: PrecisionName = "float32"

    def __post_init__(self) -> None:
        """Check names and numbers.

        Raises:
            RequestError: One is not known or out of range.
        """
        _one_of("schedule", self.schedule, SCHEDULES)
        _one_of("precision", self.precision, PRECISIONS)
        _one_of("start", self.start, STARTS)
        _one_of("sparse_by", self.sparse_by, SPARSE)
        _one_of("optimizer", self.optimizer, (None, *OPTIMIZERS))
        _one_of("norms", self.norms, (None, *NORMS))
        for name, _ in self.loss:
            if ".py:" not in name:
                _one_of("loss", name, LOSSES)
        for what in ("batch_size", "accumulate", "patience"):
            _at_least(what, getattr(self, what), 1)
        _at_least("epochs", self.epochs, 0 if self.sparse_epochs else 1)
        for what in _AMOUNTS:
            _at_least(what, getattr(self, what), 0)
        for what in ("lr", "temperature", "clip"):
            value = getattr(self, what)
            if value is not None and not 0 < value < _LARGEST:
                raise RequestError(f"{_named(what)} must be a number above 0, found {value:g}")
        for what in ("warmup", "momentum", "label_smoothing", "ema", "validation"):
            value = getattr(self, what)
            if value is not None and not 0 <= value < 1:
                raise RequestError(f"{_named(what)} must be in [0, 1), found {value:g}")
        self._check_together()

    def _check_together(self) -> None:
        """Check that no two fields contradict each other."""
        if self.sparse_epochs and self.precision == "float16":
            raise RequestError(
                "sparse learning adds to gradients, which float16 scales: use bfloat16 or float32"
            )
        if self.patience is not None and not self.validation:
            raise RequestError(
                "`TrainingOptions.patience` looks at samples that do not train: set "
                "`TrainingOptions.validation`, their share, above 0"
            )
        if self.start != "select" and self.equivalent is False:
            raise RequestError("decompressors start from something only where there are any")

    def samples_per_step(self, n_samples: int) -> int:
        """Return the batch size: what was asked for, or `BATCH_SIZE`, or fewer of few samples.

        A pass over few samples has few steps, and those decide how far training comes: batches are
        halved as long as a pass has fewer than `_STEPS`, down to `LEAST_BATCH_SIZE`. That takes
        another learning rate, so it is only where the rate is found too.

        Args:
            n_samples: That train.
        """
        if self.batch_size is not None:
            return self.batch_size
        size = BATCH_SIZE
        while self.lr is None and size > LEAST_BATCH_SIZE and n_samples < _STEPS * size:
            size //= 2
        return size

    def optimizer_for(self, *, distils: bool) -> OptimizerName:
        """Return what steps: what was asked for, or "adamw" where it gains, or "sgd".

        It gains where the original's outputs alone teach, as `docs/training.md` shows. Rates of the
        two are far apart, so a rate that is given is one of "sgd", as ever.

        Args:
            distils: Whether the original's outputs alone teach.
        """
        return self.optimizer or ("adamw" if distils and self.lr is None else "sgd")

    @property
    def recombines(self) -> bool:
        """Whether compressors and decompressors learn.

        They gain where labels alone teach, and make no difference or lose where the original's
        outputs do, as `docs/training.md` shows.
        """
        if self.equivalent is not None:
            return self.equivalent
        spoken_of = any(getattr(self, f) != getattr(TrainingOptions, f) for f in _OF_MATRICES)
        return spoken_of or set(dict(self.loss)) == {"ce"}


PRESETS: dict[str, dict[str, float | str]] = {
    "paper-vgg": {"lr": 0.01, "matrix_lr": 0.2, "matrix_decay": 5e-4, "schedule": "step"},
    "paper-resnet56": {"lr": 0.01, "matrix_lr": 2.0, "matrix_decay": 0.0, "schedule": "step"},
    "paper-resnet50": {"matrix_lr": 0.25, "matrix_decay": 0.0, "weight_decay": 1e-4, "lr": 0.04},
    "paper-vit": {
        "matrix_lr": 0.2,
        "matrix_decay": 0.0,
        "optimizer": "adamw",
        "weight_decay": 0.05,
        "lr": 1.25e-4,
        "label_smoothing": 0.11,
    },
}
"""What the scripts of Chen et al., Optimal Brain Connection, arXiv 2508.05521, train with."""


def parse_loss(text: str) -> tuple[tuple[str, float], ...]:
    """Read `kd:0.5,ce:0.5`; a name alone has weight 1.

    Raises:
        RequestError: It is not of that form, or a weight is not above 0.
    """
    terms: list[tuple[str, float]] = []
    for item in text.split(","):
        name, weight = item.strip(), "1"
        head, _, tail = name.rpartition(":")
        if head and not head.endswith(".py"):
            name, weight = head, tail
        try:
            number = float(weight)
        except ValueError:
            raise RequestError(f"'{item}' is no loss: write NAME or NAME:WEIGHT") from None
        if not 0 < number < _LARGEST:
            raise RequestError(f"the weight of loss '{name}' must be above 0, found {weight}")
        if name in dict(terms):
            raise RequestError(f"loss '{name}' is named twice: give it one weight")
        terms.append((name, number))
    return tuple(terms)


def check_labels(options: TrainingOptions, *, labelled: bool) -> None:
    """Check that there are labels where the loss looks at them.

    Raises:
        RequestError: There are none.
    """
    if "ce" in dict(options.loss) and not labelled:
        raise RequestError(
            "loss 'ce' of `TrainingOptions.loss` needs data with labels: use 'kd' or 'mse'"
        )


@dataclass(frozen=True)
class Training:
    """A training as it runs.

    Attributes:
        options: How.
        seed: Of every random choice.
        device: Where torch runs.
    """

    options: TrainingOptions
    seed: int
    device: str


def training_options(training: TrainingOptions | int) -> TrainingOptions | None:
    """Return what a caller gave: options, or a number of epochs of which 0 means none."""
    if isinstance(training, int):
        return TrainingOptions(epochs=training) if training else None
    return training


FIELDS = tuple(field.name for field in fields(TrainingOptions))


def _one_of(what: str, value: str | None, known: Sequence[str | None]) -> None:
    if value not in known:
        listed = ", ".join(name for name in known if name is not None)
        raise RequestError(f"{_named(what)} '{value}' is not known: choose from {listed}")


def _at_least(what: str, value: float | None, least: int) -> None:
    if value is not None and not least <= value < _LARGEST:
        raise RequestError(f"{_named(what)} must be at least {least}, found {value:g}")


def _named(field: str) -> str:
    return f"`TrainingOptions.{field}`"
