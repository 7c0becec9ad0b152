"""What an operator does to single numbers, for stages that follow values and not axes."""

from __future__ import annotations

from enum import Flag, auto


class Effect(Flag):
    """What an operator does, in words that are true of each number of its outputs.

    Several may be true of one operator. None is where an operator does something else.

    Attributes:
        MOVES: It is a number of the first input; other inputs and attributes only say which.
        IN_ORDER: The k-th is made of the k-th number of the first input, at most in another type.
        IN_PLACE: It is made so of the number at the same position, so that axes stay as well.
        BROADCASTS: It is the number of the first input that numpy's broadcasting puts there.
        JOINS: It is a number of some input; all inputs lie one behind the other.
        CHOOSES: It is that of the second or third input, at its position, as the first says.
        ADDS: It is the sum of those of two inputs at its position.
        SUBTRACTS: It is that of the first input less that of the second.
        MULTIPLIES: It is the product of those of two inputs.
        DIVIDES: It is that of the first input divided by that of the second.
        EXPONENTIATES: It is e to the power of that at its position.
        SUMS: It is the sum of the first input along some axes.
        AVERAGES: It is the mean of some numbers of the first input.
        SHARES: It is a softmax: not negative, and along some axes all add up to 1.
        MULTIPLIES_MATRICES: It is that of the matrix product of two inputs, as of numpy.matmul.
        MEASURES: It tells of the shape of the input alone.
    """

    MOVES = auto()
    IN_ORDER = auto()
    IN_PLACE = auto()
    BROADCASTS = auto()
    JOINS = auto()
    CHOOSES = auto()
    ADDS = auto()
    SUBTRACTS = auto()
    MULTIPLIES = auto()
    DIVIDES = auto()
    EXPONENTIATES = auto()
    SUMS = auto()
    AVERAGES = auto()
    SHARES = auto()
    MULTIPLIES_MATRICES = auto()
    MEASURES = auto()


NO_EFFECT = Effect(0)
