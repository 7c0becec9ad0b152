"""Operators that are frozen on purpose, each with its reason.

Freezing is correct whatever an operator does.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from obc_onnx.errors import UnsupportedOperatorError
from obc_onnx.ops.base.rule import Call, FreeOfMacs, Rule
from obc_onnx.ops.base.value import Value

if TYPE_CHECKING:
    from obc_onnx.ops.base.context import CoupleContext, ForwardContext


class Frozen(FreeOfMacs):
    """Operators from whose inputs and outputs nothing may be removed, and that torch lacks.

    A class derived from this one names its operators and the reason, and needs nothing else.
    """

    def couple(self, context: CoupleContext) -> list[Value]:
        """Freeze every axis of every input, and make outputs of which every axis is frozen."""
        for value in context.inputs:
            if value is not None:
                context.freeze(value.axes, self.why)
        return [
            Value(()) if shape is None else context.opaque(self.why, i)  # None: it is left out
            for i, shape in enumerate(context.output_shapes)
        ]

    def forward(self, context: ForwardContext) -> Call:
        """Refuse.

        Raises:
            UnsupportedOperatorError: Always; a class that torch has a function for overrides this.
        """
        raise UnsupportedOperatorError(f"{context.node.label}: the twin has no form for {self.why}")


class Random(Frozen):
    """Numbers drawn again whenever the model runs; another shape draws others."""

    op_types = ("Multinomial", "RandomNormal", "RandomUniform")
    why = "random numbers"
    repeats = False


class RandomLike(Random):
    """Numbers drawn for every position of a tensor, so that the batch goes on."""

    op_types = ("Bernoulli", "RandomNormalLike", "RandomUniformLike")

    def couple(self, context: CoupleContext) -> list[Value]:
        """Freeze the axes of the input and hand them on."""
        super().couple(context)
        return [Value(context.value(0).axes)]


class Containers(Frozen):
    """Sequences and optionals, which have no axes, and what is put into them or taken out."""

    op_types = (
        "ConcatFromSequence", "Optional", "OptionalGetElement", "OptionalHasElement", "SequenceAt",
        "SequenceConstruct", "SequenceEmpty", "SequenceErase", "SequenceInsert", "SequenceLength",
        "SequenceMap", "SplitToSequence",
    )  # fmt: skip
    why = "a sequence or an optional"


class Text(Frozen):
    """Strings, and tokens that are counted."""

    op_types = (
        "RegexFullMatch", "StringConcat", "StringNormalizer", "StringSplit", "TfIdfVectorizer",
    )  # fmt: skip
    why = "text"


class EncodedImages(Frozen):
    """Bytes of an image file."""

    op_types = ("ImageDecoder",)
    why = "an encoded image"


class UnliftedConstants(Frozen):
    """Constant nodes that do not become initializers, since they hold strings."""

    op_types = ("Constant",)
    why = "a constant of strings"


class ClassicalModels(Frozen):
    """Trees, support vectors, linear models and encoders; their weights are attributes."""

    op_types = (
        "ArrayFeatureExtractor", "Binarizer", "CastMap", "CategoryMapper", "DictVectorizer",
        "FeatureVectorizer", "Imputer", "LabelEncoder", "LinearClassifier", "LinearRegressor",
        "Normalizer", "OneHotEncoder", "SVMClassifier", "SVMRegressor", "Scaler", "TreeEnsemble",
        "TreeEnsembleClassifier", "TreeEnsembleRegressor", "ZipMap",
    )  # fmt: skip
    domains = ("ai.onnx.ml",)
    why = "features whose weights are attributes"


class Training(Frozen):
    """Steps of training that are part of a graph."""

    op_types = ("Adagrad", "Adam", "Gradient", "Momentum")
    domains = ("ai.onnx.preview.training",)
    why = "a step of training"


RULES: tuple[Rule, ...] = (
    ClassicalModels(),
    Containers(),
    EncodedImages(),
    Random(),
    RandomLike(),
    Text(),
    Training(),
    UnliftedConstants(),
)
