"""The report in a browser: scripts run without errors, and fold, search and dark mode work.

Pages are those of a small network and of real ones, as wide as a desk has it and as a telephone.
"""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from dataclasses import replace
from html import escape, unescape
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
import pytest
from conftest import ROOT
from report.page_parts import ORIGIN, pages
from run.test_zoo import ZOO, load
from small import chain

from obc_onnx.report.page import compression_page, inspection_page
from obc_onnx.run.api import compress
from obc_onnx.run.inspection import inspect
from obc_onnx.samples.samples import Samples

if TYPE_CHECKING:
    from pathlib import Path

CHROMIUM = next(
    filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None
)
DO = """
<script>
const told = {errors: []};
const press = (key) => document.dispatchEvent(new KeyboardEvent("keydown", {key, cancelable: true}));
const visible = (selector) =>
  [...document.querySelectorAll(selector)].filter((one) => one.checkVisibility()).length;
try { %s } catch (error) { told.errors.push(String(error)); }
document.body.innerHTML = "";
document.body.textContent = JSON.stringify(told);
</script></body>
"""
WINDOW = """<!doctype html>
<iframe width="%d" height="900" style="border: 0" srcdoc="%s" onload="
  document.body.textContent = this.contentDocument.body.textContent"></iframe>
"""
"""A frame is as narrow as a telephone; windows of Chromium are not."""
DESK, TELEPHONE = 1280, 390
"""Pixels of width."""

pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no chromium is installed")


def told_by(page: str, folder: Path, script: str, width: int = DESK) -> dict[str, Any]:
    """Run a script at the end of a page, and return what it found; raise on errors of scripts."""
    path = folder / "page.html"
    page = page.replace("</body>", DO % script)
    path.write_text(WINDOW % (width, escape(page)), encoding="utf-8")
    command = [
        *(str(CHROMIUM), "--headless", "--no-sandbox", "--disable-gpu", "--enable-logging=stderr"),
        *("--window-size=1280,900", f"--user-data-dir={folder / 'profile'}"),
        *("--dump-dom", path.as_uri()),
    ]
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=120)
    spoken = [line for line in done.stderr.splitlines() if "CONSOLE" in line]
    assert not spoken, spoken
    found = re.search(r"<body[^>]*>(.*)</body>", done.stdout, re.DOTALL)
    assert found is not None, done.stdout[:500]
    told: dict[str, Any] = json.loads(unescape(found[1]))
    assert told["errors"] == []
    return told


def many_layers() -> str:
    found = inspect(chain())
    layers = [replace(v, node=f"{v.node}{i}") for i in range(2000) for v in found.layers]
    return inspection_page(replace(found, layers=layers), ORIGIN)


@pytest.mark.parametrize("width", [DESK, TELEPHONE])
@pytest.mark.parametrize("kind", ["compression", "plan", "inspection", "sensitivity", "sweep"])
def test_every_page_runs_without_errors_and_nothing_is_wider_than_the_window(
    kind: str, width: int, tmp_path: Path
) -> None:
    script = """
      told.sections = visible(".section > summary h2");
      told.wide = document.documentElement.scrollWidth > innerWidth;
      told.width = innerWidth;
      told.bars = [...document.querySelectorAll(".bar")].map((bar) => bar.clientWidth);
    """
    told = told_by(pages()[kind], tmp_path, script, width)
    assert told["width"] == width
    assert told["sections"] >= 2
    assert not told["wide"]
    assert all(width > 50 for width in told["bars"])


def test_everything_folds_and_unfolds(tmp_path: Path) -> None:
    script = """
      document.getElementById("fold").click();
      told.folded = [visible(".layer"), visible("table"), visible("h2")];
      document.getElementById("unfold").click();
      told.unfolded = [visible(".layer"), visible("table")];
      const layer = document.querySelector(".layer");
      layer.querySelector("summary").click();
      told.facts = layer.querySelector("dl").checkVisibility();
    """
    told = told_by(pages()["compression"], tmp_path, script)
    assert told["folded"][:2] == [0, 0]
    assert told["folded"][2] > 5
    assert min(told["unfolded"]) > 2
    assert told["facts"]


def test_the_search_finds_layers_by_the_keyboard_alone(tmp_path: Path) -> None:
    script = """
      const search = document.getElementById("search");
      const which = document.getElementById("which");
      press("/");
      told.focused = document.activeElement === search;
      search.value = "CONV p1999";
      search.dispatchEvent(new Event("input"));
      told.found = [visible(".layer"), document.getElementById("found").value];
      which.value = "frozen";
      which.dispatchEvent(new Event("change"));
      told.both = visible(".layer");
      press("Escape");
      told.frozen = document.getElementById("found").value;
      const start = performance.now();
      search.value = "p";
      search.dispatchEvent(new Event("input"));
      told.ms = performance.now() - start;
    """
    told = told_by(many_layers(), tmp_path, script)
    assert told["focused"]
    assert told["found"] == [1, "1 of 6000 layers"]
    assert told["both"] == 0
    assert told["frozen"] == "2000 of 6000 layers"
    assert told["ms"] < 1000


@pytest.mark.parametrize("kind", ["compression", "sensitivity"])
def test_dark_and_light_can_be_read(kind: str, tmp_path: Path) -> None:
    """Contrast is that of WCAG 2.1; 4.5 is its level AA for text."""
    script = """
      const luminance = (colour) => {
        const [r, g, b] = colour.match(/[\\d.]+/g).map((v) => v / 255)
          .map((v) => (v <= 0.03928 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4));
        return 0.2126 * r + 0.7152 * g + 0.0722 * b;
      };
      const contrast = (selector) => {
        const element = document.querySelector(selector);
        const ground = getComputedStyle(document.querySelector(".section")).backgroundColor;
        const [a, b] = [getComputedStyle(element).color, ground].map(luminance).sort((x, y) => y - x);
        return (a + 0.05) / (b + 0.05);
      };
      const button = document.getElementById("theme");
      told.modes = [];
      for (const _ of [0, 1]) {
        told.modes.push([
          button.getAttribute("aria-pressed"),
          getComputedStyle(document.body).backgroundColor,
          Math.min(contrast("h2"), contrast(".section .note"), contrast("thead th")),
        ]);
        button.click();
      }
    """
    (first, ground, contrast), (second, other, other_contrast) = told_by(
        pages()[kind], tmp_path, script
    )["modes"]
    assert {first, second} == {"true", "false"}
    assert ground != other
    assert min(contrast, other_contrast) >= 4.5


def shipped_page() -> str:
    """Of the shipped ResNet-20, cut to half."""
    with np.load(ROOT / "models" / "fashion-test.npz") as arrays:
        pixels, labels = arrays["input"][:128], arrays["labels"][:128]
    samples = Samples({"input": pixels}, labels, {"input": np.dtype("float32")})
    model = ROOT / "models" / "fashion_resnet20.onnx"
    done = compress(model, data=samples, budget=0.5, recover="none")
    return compression_page(done.report, ORIGIN)


def zoo_page(name: str) -> str:
    """What can be pruned of a public architecture."""
    if not (ZOO / "fill.py").is_file():
        pytest.skip(f"no zoo in '{ZOO}'")
    return inspection_page(inspect(load(ZOO / "fill.py").fill(onnx.load(ZOO / name))), ORIGIN)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["fashion_resnet20.onnx", "swin_t.ts.onnx", "test_vit.ts.onnx"])
def test_pages_of_real_networks_show_their_layers_and_find_them(name: str, tmp_path: Path) -> None:
    page = shipped_page() if name == "fashion_resnet20.onnx" else zoo_page(name)
    script = """
      told.tables = visible("table");
      told.bars = visible(".bar");
      told.layers = visible(".layer");
      told.wide = document.documentElement.scrollWidth > innerWidth;
      const search = document.getElementById("search");
      search.value = document.querySelector(".layer .name").textContent;
      search.dispatchEvent(new Event("input"));
      told.found = visible(".layer");
      document.getElementById("fold").click();
      told.folded = visible("table");
      document.getElementById("theme").click();
    """
    told = told_by(page, tmp_path, script)
    assert told["tables"] >= 2
    assert told["bars"] >= told["layers"] > 20
    assert not told["wide"]
    assert 0 < told["found"] < told["layers"]
    assert told["folded"] == 0
