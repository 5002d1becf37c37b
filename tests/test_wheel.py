"""What is published: an sdist and a wheel that an index takes, and that an aggregator can install."""

from __future__ import annotations

import re
import subprocess
import sys
import tarfile
import tomllib
import zipfile
from email.parser import BytesParser
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


def tools(folder: Path) -> Path:
    """The python of a fresh environment with what builds and checks."""
    subprocess.run([sys.executable, "-m", "venv", folder], check=True, timeout=300)
    python = folder / "bin" / "python"
    backend = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["build-system"]["requires"]
    wanted = ["build", "twine", *backend]
    done = subprocess.run([python, "-m", "pip", "install", "--quiet", *wanted], capture_output=True, timeout=600)
    if done.returncode:
        pytest.skip(f"{', '.join(wanted)} cannot be installed here, perhaps for want of a network")
    return python


def links(page: str, start: str = "") -> list[str]:
    """Where a page's links lead that begin so."""
    return [target for target in re.findall(r"\]\(([^)\s]+)\)", page) if target.startswith(start)]


def test_an_index_shows_no_link_that_leads_nowhere() -> None:
    hook = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["hatch"]["metadata"]["hooks"]
    page = (ROOT / "README.md").read_text(encoding="utf-8")
    for change in hook["fancy-pypi-readme"]["substitutions"]:
        page = re.sub(change["pattern"], change["replacement"], page)
    assert links(page) and links(page) == links(page, "https://")
    assert "[three sites, step by step]" not in page and "three sites, step by step." in page


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
    shown = BytesParser().parsebytes(zipfile.ZipFile(wheel).read(f"{wheel.name.split('-py3')[0]}.dist-info/METADATA"))
    assert links(str(shown.get_payload())) == links((ROOT / "README.md").read_text(encoding="utf-8"), "https://")
    packages = {name.partition("/")[0] for name in zipfile.ZipFile(wheel).namelist()}
    assert {name for name in packages if not name.endswith(".dist-info")} == {
        "codream_clients",
        "codream_protocols",
        "codream_server",
        "secure_codream",
    }
