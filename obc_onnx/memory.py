"""Memory: how much there is, and what nobody uses, given back before much more is taken."""

from __future__ import annotations

import ctypes
import gc
import os
import sys

_MUCH = 2**28
"""Bytes from which on looking for what is unused takes less time than filling them."""


def make_room(n_bytes: int) -> None:
    """Give back what is unused, where much memory is about to be taken.

    Nodes and values refer to each other, in graphsurgeon as in torch. A graph or a twin that nobody
    uses any more therefore stays, with all of its weights, until Python looks for such circles.
    When it does depends on how many objects there are, and not on their size: a few graphs of a
    large model fill the memory long before.

    Args:
        n_bytes: How much is about to be taken.
    """
    if n_bytes >= _MUCH:
        gc.collect()
        _trim()


def memory_of_machine() -> int | None:
    """Return the bytes of memory of the machine; None where the system does not tell."""
    known = getattr(os, "sysconf_names", {})
    if not {"SC_PHYS_PAGES", "SC_PAGE_SIZE"} <= known.keys():
        return None
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


def _trim() -> None:
    """Let glibc give freed pieces back to the system: it keeps those of up to 32 MiB for itself.

    Weights of that size lie between smaller pieces, so that others do not fit into what they leave.
    Other C libraries have no such function.
    """
    if sys.platform == "linux":
        trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
        if trim is not None:
            trim(0)
