"""A hook of mkdocs: pages outside of docs/ that the site has too, and links between both.

The README is the first page of the site. Pages link to each other as files of the project do, so
that links work on code hosts too; here they become those of the site.
"""

from __future__ import annotations

import posixpath
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mkdocs.config.defaults import MkDocsConfig
    from mkdocs.structure.files import Files
    from mkdocs.structure.pages import Page

ROOT = Path(__file__).resolve().parents[1]
FIRST = "README.md"
BESIDE = ("CHANGELOG.md", "CITATION.cff", "CONTRIBUTING.md", "SECURITY.md", "models/*.md")
LICENCES = ("models/LICENSE.fashion-mnist",)
_LINK = re.compile(r"(\]\()(?!\w+:|#)([^)\s#]+)")


def on_files(files: Files, *, config: MkDocsConfig) -> Files:
    """Add what lies outside of docs/."""
    from mkdocs.structure.files import File  # which only the site's own environment has

    for path in outside():
        files.append(File.generated(config, place_of(path), abs_src_path=str(ROOT / path)))
    return files


def on_page_markdown(markdown: str, *, page: Page, **_: Any) -> str:
    """Point links at where the site has their targets."""
    here = page.file.src_uri
    return _LINK.sub(lambda found: found[1] + moved(found[2], here), markdown)


def outside() -> list[str]:
    """List the files, by their paths in the project."""
    patterns = (FIRST, *BESIDE, *LICENCES)
    paths = [path for pattern in patterns for path in sorted(ROOT.glob(pattern))]
    return [path.relative_to(ROOT).as_posix() for path in paths]


def place_of(path: str) -> str:
    """Say where the site has a file of the project."""
    return "index.md" if path == FIRST else path.removeprefix("docs/")


def source_of(place: str) -> str:
    """Say which file of the project is at a place of the site."""
    if place == "index.md":
        return FIRST
    return place if place in outside() else f"docs/{place}"


def moved(target: str, here: str) -> str:
    """Turn a link between files of the project into one between places of the site.

    Args:
        target: The path in the link.
        here: The place of the page that has it.
    """
    folder = posixpath.dirname(source_of(here))
    path = posixpath.normpath(posixpath.join(folder, target))
    return posixpath.relpath(place_of(path), posixpath.dirname(here) or ".")
