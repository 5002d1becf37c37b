"""What is published: an sdist and a wheel that an index takes, and that an aggregator can install."""

from __future__ import annotations

import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


def tools(folder: Path) -> Path:
    """The python of a fresh environment with what builds and checks."""
    subprocess.run([sys.executable, "-m", "venv", folder], check=True, timeout=300)
    python = folder / "bin" / "python"
    wanted = ["build", "twine", "hatchling>=1.25", "editables"]
    done = subprocess.run([python, "-m", "pip", "install", "--quiet", *wanted], capture_output=True, timeout=600)
    if done.returncode:
        pytest.skip(f"{', '.join(wanted)} cannot be installed here, perhaps for want of a network")
    return python


@pytest.mark.exhaustive
def test_sdist_and_wheel_pass_the_checks_of_an_index(tmp_path: Path) -> None:
    python, out = tools(tmp_path / "tools"), tmp_path / "dist"
    build = [python, "-m", "build", "--no-isolation", "--outdir", out, ROOT]
    done = subprocess.run(build, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stdout + done.stderr
    (wheel,), (sdist,) = out.glob("*.whl"), out.glob("*.tar.gz")
    check = [python, "-m", "twine", "check", "--strict", wheel, sdist]
    checked = subprocess.run(check, capture_output=True, text=True, timeout=300)
    assert checked.returncode == 0 and checked.stdout.count("PASSED") == 2, checked.stdout + checked.stderr
    with tarfile.open(sdist) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    examples = {f"examples/{path.name}" for path in (ROOT / "examples").iterdir() if path.suffix in (".py", ".toml")}
    assert examples <= names and "LICENSE" in names and not any(name.startswith("runs/") for name in names)
    packages = {name.partition("/")[0] for name in zipfile.ZipFile(wheel).namelist()}
    assert {name for name in packages if not name.endswith(".dist-info")} == {
        "codream_clients",
        "codream_protocols",
        "codream_server",
        "secure_codream",
    }
