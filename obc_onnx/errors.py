"""The errors a user can act on.

An `ObcError` is about the request or its inputs: the command line prints its one message and
exits with its code. An `InvariantError` is a bug of ours and is meant to give a traceback.
"""


class ObcError(Exception):
    """Base of every error that the user can act on."""

    exit_code = 1


class InstallationError(ObcError):
    """A package that is needed is not installed, or not whole; the message says what to run."""


class ModelError(ObcError):
    """The model file cannot be read, checked or written."""


class ShapeError(ModelError):
    """A tensor has no concrete shape where one is needed."""


class NoSizeError(ShapeError):
    """A size would be below 0, in nodes behind which ONNX Runtime may end the process."""


class UnsupportedOperatorError(ModelError):
    """The twin needs operators that have no rule."""


class EngineError(ObcError):
    """An engine is not there, does not run a model, or answers something else than times."""


class RequestError(ObcError):
    """An option names something that is not there, or a value is out of range."""


class UserCodeError(RequestError):
    """Code that the user named has raised; its cause is what it raised."""


class InfeasibleTargetError(RequestError):
    """The budget cannot be met; the message says how far it can go and what holds it."""


class DataError(ObcError):
    """The samples do not fit the model."""


class DivergedError(DataError):
    """A loss is not finite."""


class VerificationError(ObcError):
    """The result failed a check; nothing was written."""

    exit_code = 3


class InvariantError(Exception):
    """A bug in obc-onnx itself; deliberately not an `ObcError`."""
