"""The report in a browser: scripts run without errors, and fold, search and dark mode work."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from dataclasses import replace
from html import unescape
from typing import TYPE_CHECKING, Any

import pytest
from report.page_parts import ORIGIN, pages
from small import chain

from obc_onnx.report.page import inspection_page
from obc_onnx.run.inspection import inspect

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

pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no chromium is installed")


def told_by(page: str, folder: Path, script: str) -> dict[str, Any]:
    """Run a script at the end of a page, and return what it found; raise on errors of scripts."""
    path = folder / "page.html"
    path.write_text(page.replace("</body>", DO % script), encoding="utf-8")
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


@pytest.mark.parametrize("kind", ["compression", "plan", "inspection", "sensitivity"])
def test_every_page_runs_without_errors_and_nothing_is_wider_than_the_window(
    kind: str, tmp_path: Path
) -> None:
    script = """
      told.sections = visible(".section > summary h2");
      told.wide = document.documentElement.scrollWidth > innerWidth;
      told.bars = [...document.querySelectorAll(".bar")].map((bar) => bar.clientWidth);
    """
    told = told_by(pages()[kind], tmp_path, script)
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
