"""Print what `make test-floors` installs: the oldest versions that the package says it works with.

    python tools/floors.py [--torch 2.6.0]

The floors are read from the requirement files and from the `fuse` extra. torch is the one of
`constraints.txt`: on Linux older ones come with CUDA, which takes gigabytes; `--torch` tries one.
The tests' own tools are those of `constraints.txt` too.
"""

from __future__ import annotations

import argparse
import tomllib
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
TEST_TOOLS = ("hypothesis", "pytest", "pytest-timeout", "pytest-xdist")


def main() -> None:
    """Print one requirement a line, as `pip install -r` takes them."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--torch", metavar="VERSION", help="Version of torch.")
    torch = parser.parse_args().torch
    pinned = pins()
    print(*floors(), sep="\n")
    print(f"torch=={torch}" if torch else pinned["torch"])
    print(*(pinned[name] for name in TEST_TOOLS), sep="\n")


def floors() -> list[str]:
    """List the floor of every dependency but torch, with its marker."""
    return [line.replace(">=", "==", 1) for line in declared() if not line.startswith("torch>=")]


def declared() -> list[str]:
    """List what the package depends on, the extra that users may ask for included."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    found = list(project["project"]["optional-dependencies"]["fuse"])
    for name in project["tool"]["setuptools"]["dynamic"]["dependencies"]["file"]:
        found += requirements(name)
    return found


def pins() -> dict[str, str]:
    """Find the pin of every package in `constraints.txt` by its name."""
    return {line.partition("==")[0]: line for line in requirements("constraints.txt")}


def requirements(name: str) -> list[str]:
    """Read a file of requirements, without its comments."""
    lines = (ROOT / name).read_text(encoding="utf-8").splitlines()
    return [line for line in lines if line and not line.startswith("#")]


if __name__ == "__main__":
    main()
