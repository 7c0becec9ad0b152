"""Pages as programs read them: elements, their text and what they refer to."""

from __future__ import annotations

from functools import cache
from html.parser import HTMLParser
from typing import TYPE_CHECKING

import numpy as np
from helpers import TO_THE_UNIT, build
from small import CHAIN, chain, classes, images

from obc_onnx.planning.budget import Budget
from obc_onnx.report.page import (
    Origin,
    compression_page,
    inspection_page,
    outlook_page,
    sensitivity_page,
    sweep_page,
)
from obc_onnx.run.api import compress, foresee
from obc_onnx.run.inspection import inspect
from obc_onnx.run.sensitivity import measure_sensitivity
from obc_onnx.run.sweep import sweep
from obc_onnx.samples.samples import Samples

if TYPE_CHECKING:
    from typing import Any

    from obc_onnx.report.summary import Report
    from obc_onnx.report.sweep import Sweep

ORIGIN = Origin("obc-onnx compress 'a b.onnx' -o small.onnx", 7, {"obc-onnx": "1.2", "onnx": "3.4"})
VOID = {"meta", "input"}
"""Elements that have no end."""
REFERS = {"src", "href", "action", "data", "poster", "srcset", "background", "formaction"}


class Page(HTMLParser):
    """What a page holds.

    Attributes:
        ids: Of elements, in order.
        rows: The cells of every row of tables and lists of layers, as texts.
        refers: Attributes that name something outside.
        unbalanced: Ends that do not match what is open.
    """

    def __init__(self, text: str) -> None:
        super().__init__(convert_charrefs=True)
        self.text, self.ids, self.refers, self.unbalanced = "", [], [], []
        self.tags: list[str] = []
        self.rows: list[list[str]] = []
        self._open: list[str] = []
        self.feed(text)
        self.close()
        self.unbalanced += self._open

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        for name, value in attrs:
            if name == "id":
                self.ids.append(value)
            if name in REFERS or name.startswith("on") or "url(" in (value or ""):
                self.refers.append((tag, name, value))
        if tag == "tr" or ("class", "row") in attrs:
            self.rows.append([])
        if tag in {"td", "th"} and self.rows:
            self.rows[-1].append("")
        if tag not in VOID:
            self._open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        if tag in VOID:
            return
        if not self._open or self._open.pop() != tag:
            self.unbalanced.append(tag)

    def handle_data(self, data: str) -> None:
        if self._open and self._open[-1] not in {"style", "script"}:
            self.text += data
            if {"td", "th"} & set(self._open) and self.rows and self.rows[-1]:
                self.rows[-1][-1] += data


def samples() -> Samples:
    return Samples({"x": images(64)}, classes(64), {"x": np.dtype("float32")})


@cache
def report() -> Report:
    """Compress, repair and train a small network: every part of a report is there."""
    return compress(chain(), data=samples(), training=2, recover_minutes=0).report


@cache
def swept() -> Sweep:
    """Sweep over a small network, to a target that cannot be reached as well."""
    options: dict[str, Any] = {
        "recover": "none",
        "budget": Budget(scope=TO_THE_UNIT),
        "pick": "0.5",
    }
    return sweep(chain(), data=samples(), targets=(0.7, 0.5, 0.3, 0.001), **options).sweep


@cache
def pages() -> dict[str, str]:
    """One page of each kind."""
    return {
        "compression": compression_page(report(), ORIGIN),
        "plan": outlook_page(foresee(chain(), budget=0.5), ORIGIN),
        "inspection": inspection_page(inspect(build(CHAIN)), ORIGIN),
        "sweep": sweep_page(swept(), ORIGIN),
        "sensitivity": sensitivity_page(measure_sensitivity(chain(), data=samples()), ORIGIN),
    }
