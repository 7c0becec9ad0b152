"""Rows of measurements in a CSV file that grows, so that a run can be continued."""

from __future__ import annotations

import csv
from dataclasses import asdict, fields
from typing import TYPE_CHECKING, Any, TypeVar, get_type_hints

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

Row = TypeVar("Row")

_DIGITS = 6


def read(path: Path, kind: type[Row]) -> list[Row]:
    """Read rows that were written earlier; none where there is no file."""
    if not path.exists():
        return []
    types = get_type_hints(kind)
    with path.open(newline="", encoding="utf-8") as file:
        return [
            kind(**{name: types[name](value) for name, value in row.items()})
            for row in csv.DictReader(file)
        ]


def append(path: Path, rows: Sequence[Any]) -> None:
    """Add rows, which are instances of one dataclass, below the names of its fields."""
    if not rows:
        return
    fresh = not path.exists()
    with path.open("a", newline="", encoding="utf-8") as file:
        names = [field.name for field in fields(rows[0])]
        writer = csv.DictWriter(file, names, lineterminator="\n")
        if fresh:
            writer.writeheader()
        writer.writerows(
            {k: round(v, _DIGITS) if isinstance(v, float) else v for k, v in asdict(row).items()}
            for row in rows
        )
