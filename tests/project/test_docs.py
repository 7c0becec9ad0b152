"""What README and docs show is run, in the order of each page, and what they link to is there.

Models and samples are small stand-ins: that a command runs is tested here, and what comes out for a
trained network elsewhere.
"""

from __future__ import annotations

import re
import shutil
import signal
from typing import TYPE_CHECKING

import click
import pytest
from conftest import ROOT
from doc_files import write_files
from doc_pages import (
    DOCS,
    OUTPUT,
    RUN,
    WRITTEN_BY_TOOLS,
    blocks,
    options_of,
    options_of_tools,
    pages,
    read,
    run,
    without_blocks,
)
from helpers import load_tool

from obc_onnx.errors import ObcError, VerificationError

if TYPE_CHECKING:
    from pathlib import Path

PAGES = pages()
BY_HAND = [
    page for page in PAGES if page.startswith(("README", "docs/")) and page not in WRITTEN_BY_TOOLS
]
RUNNING = [
    page
    for page in BY_HAND
    if any(block.language in RUN and not block.is_skipped for block in blocks(page))
]
FOREIGN = {
    *("--exportTimes", "--exportProfile", "--exportLayerInfo", "--loadInputs", "--loadRefOutputs"),
    *("--stronglyTyped", "--data-loader-script", "--save-inputs"),
}
"""Options of trtexec and Polygraphy that pages name."""
LINK = re.compile(r"\[[^\]]*\]\((?!\w+:)([^)\s#]*)(?:#([^)\s]*))?\)")
HEADING = re.compile(r"^#{1,6} (.+)$", re.MULTILINE)


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("files")
    write_files(folder)
    return folder


@pytest.mark.parametrize("page", RUNNING)
def test_the_blocks_of_a_page_run_in_order(
    page: str, files: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(files, tmp_path, dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path)
    for block in blocks(page):
        run(block)


@pytest.mark.parametrize("page", BY_HAND)
def test_every_block_is_run_written_or_says_why_not(page: str) -> None:
    for block in blocks(page):
        is_done = block.language in (*RUN, OUTPUT) or block.file is not None
        assert is_done or block.is_skipped, f"{block.place}: say `file:` or `not run:`"
        assert not block.note or block.file or block.is_skipped, f"{block.place}: {block.note}"
    for named in re.findall(r"<!-- not run: .*?(tests/[\w/.]+)", read(page)):
        assert (ROOT / named).is_file(), f"{page}: '{named}' is not there"
    rest = without_blocks(page)
    assert "```" not in rest, f"{page}: a block that is not seen as one"
    assert not re.search(r"\n\n    [^-*\d ]", rest), f"{page}: code by indentation is not seen"


@pytest.mark.parametrize("page", BY_HAND)
def test_every_option_that_is_named_is_one(page: str) -> None:
    told = re.findall(r"`(--[a-z][\w-]+)[^`]*`", without_blocks(page))
    known = options_of() | options_of_tools() | FOREIGN
    assert set(told) <= known, f"{page}: {sorted(set(told) - known)}"


def anchors(page: str) -> set[str]:
    """Name the headings as their links do, on code hosts and on the site."""
    titles = HEADING.findall(without_blocks(page))
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}


@pytest.mark.parametrize("page", PAGES)
def test_every_link_leads_somewhere(page: str) -> None:
    for target, anchor in LINK.findall(without_blocks(page)):
        path = (ROOT / page).parent / target if target else ROOT / page
        assert path.exists(), f"{page} links to '{target}'"
        if anchor:
            found = path.resolve().relative_to(ROOT).as_posix()
            assert anchor in anchors(found), f"{page} links to '{target}#{anchor}'"


def test_exit_codes_are_those_of_the_program() -> None:
    told = re.findall(r"^\| (\d+) \|", read("docs/reference/exit_codes.md"), re.MULTILINE)
    signals = (128 + signal.SIGINT, 128 + signal.SIGTERM)
    refused = (ObcError.exit_code, VerificationError.exit_code, click.UsageError.exit_code)
    assert sorted(map(int, told)) == sorted((0, *refused, *signals))


def test_the_site_has_every_page_once() -> None:
    named = re.findall(r": (\S+\.md)$", (ROOT / "mkdocs.yml").read_text("utf-8"), re.MULTILINE)
    inside = {path.relative_to(DOCS).as_posix() for path in DOCS.rglob("*.md")}
    assert len(named) == len(set(named))
    assert inside <= set(named)


@pytest.mark.parametrize(
    ("target", "here", "expected"),
    [
        ("docs/howto/ci.md", "index.md", "howto/ci.md"),
        ("models/README.md", "index.md", "models/README.md"),
        ("../../README.md", "howto/ci.md", "../index.md"),
        ("../../CONTRIBUTING.md", "howto/plugins.md", "../CONTRIBUTING.md"),
        ("../models/README.md", "tensorrt.md", "models/README.md"),
        ("../verification.md", "howto/report.md", "../verification.md"),
    ],
)
def test_links_between_files_are_links_between_places_of_the_site(
    target: str, here: str, expected: str
) -> None:
    assert load_tool("site_pages").moved(target, here) == expected


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("```bash\nobc-onnx inspect nothing.onnx\n```\n", "does not exist"),
        ("```bash\nmake everything\n```\n", "'make' is not run here"),
        ("```python\nassert 1 == 2\n```\n", "^$"),
    ],
)
def test_a_block_that_fails_is_found(text: str, message: str) -> None:
    (block,) = blocks("page.md", text)
    with pytest.raises(AssertionError, match=message):
        run(block)


def test_comments_say_what_is_done_with_a_block(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    text = "<!-- file: a/b.toml -->\n```toml\nx = 1\n```\n\n<!-- not run: a reason -->\n```bash\nmake\n```\n"
    for block in blocks("page.md", text):
        run(block)
    assert (tmp_path / "a/b.toml").read_text() == "x = 1\n"
