"""What has to be installed besides this package, and what to run where it is not, or not whole."""

from __future__ import annotations

from contextlib import suppress
from importlib import import_module

from obc_onnx.errors import InstallationError
from obc_onnx.version import __version__

_RUNTIME_FILE = "onnxruntime/__init__.py"
"""Every package of ONNX Runtime installs this file, whatever its own name: they share a folder."""
_PACKAGES = ("onnx", "onnxruntime", "onnxruntime-gpu", "torch", "numpy")
"""Packages that a result depends on."""


def no_onnx_runtime(error: ImportError) -> InstallationError:
    """Say what to run where ONNX Runtime cannot be imported.

    Its packages share a folder: removing one of two takes files of the other away, unseen by pip.

    Args:
        error: What the import said.
    """
    return InstallationError(
        f"ONNX Runtime cannot be imported ({error}): {_remedy(_runtime_packages())}"
    )


def require_transport() -> None:
    """Check that optimal transport can be computed.

    Raises:
        InstallationError: POT is not installed, or not whole; the message names the extra.
    """
    try:
        import_module("ot")
    except ImportError as error:
        raise InstallationError(
            f"`recover='fuse'` computes optimal transport with POT, which cannot be imported "
            f"({error}): run pip install 'obc-onnx[fuse]', or use another `recover`"
        ) from error


def why_no_torch() -> str:
    """Return why torch cannot be imported and what to run, or nothing where it can."""
    try:
        import_module("torch")
    except ModuleNotFoundError as error:
        if error.name == "torch":
            return "torch is not installed: run pip install torch"
        return _damaged_torch(error)
    except (ImportError, OSError) as error:  # OSError: a library of its own is missing
        return _damaged_torch(error)
    return ""


def require_torch(what: str) -> None:
    """Check that torch can be imported.

    Args:
        what: What needs it, as the subject of a sentence.
    Raises:
        InstallationError: It is not installed, or not whole; the message says what to run.
    """
    reason = why_no_torch()
    if reason:
        raise InstallationError(f"{what} needs torch, but {reason}")


def versions() -> dict[str, str]:
    """Return the versions of this package and of what it computes with, as far as installed."""
    from importlib.metadata import PackageNotFoundError, version
    from platform import python_version

    found = {"obc-onnx": __version__, "Python": python_version()}
    for name in _PACKAGES:
        with suppress(PackageNotFoundError):
            found[name] = version(name)
    return found


def _damaged_torch(error: Exception) -> str:
    return f"torch cannot be imported ({error}): run pip install --force-reinstall torch"


def _runtime_packages() -> list[str]:
    """List the installed packages that hold ONNX Runtime, as pip knows them."""
    from importlib.metadata import distributions  # takes longer than all of the help

    return sorted({
        entry.metadata["Name"]
        for entry in distributions()
        if any(str(file) == _RUNTIME_FILE for file in entry.files or ())
    })  # fmt: skip


def _remedy(packages: list[str]) -> str:
    if not packages:
        return "run pip install onnxruntime, or install the package for your device"
    if len(packages) == 1:
        return f"its files are damaged; run pip install --force-reinstall --no-deps {packages[0]}"
    names = ", ".join(packages)
    return (
        f"{names} share one folder and have overwritten each other's files; run pip uninstall "
        f"{' '.join(packages)}, then pip install the one that you want"
    )
