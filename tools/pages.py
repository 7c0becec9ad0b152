"""Pages of documentation that a tool writes, and that a test holds against what it would write."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path


def write_or_check(path: Path, page: Callable[[], str], description: str | None) -> int:
    """Write a page, or with --check compare it.

    Args:
        path: Of the page.
        page: Gives its text.
        description: Of the tool, its first line counts.
    Returns:
        The exit code.
    """
    parser = argparse.ArgumentParser(description=description.splitlines()[0] if description else "")
    parser.add_argument("--check", action="store_true", help="compare, and write nothing")
    check = parser.parse_args().check
    text = page()
    if not check:
        path.parent.mkdir(exist_ok=True)
        path.write_text(text, encoding="utf-8")
        return 0
    if path.is_file() and path.read_text(encoding="utf-8") == text:
        return 0
    print(f"{path.parent.name}/{path.name} is not what this tool writes: run it without --check")
    return 1
