"""The documents as a site: every page is in it once, links lead to headings that are there, it builds in silence."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.pages import ROOT

DOCS = ROOT / "docs"
PAGES = sorted([*DOCS.glob("**/*.md"), DOCS / "notebook.ipynb"])


def prose(page: Path) -> str:
    """A page without its fenced blocks."""
    return re.sub(r"^```.*?^```", "", page.read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL)


def contents(page: Path) -> list[Path]:
    """The pages that a page's tables of contents name."""
    found: list[Path] = []
    for block in re.findall(r"^```\{toctree\}\n(.*?)^```", page.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL):
        for entry in block.splitlines():
            if entry and not entry.startswith(":"):
                found += sorted(page.parent.glob(f"{entry}.*"))
    return found


def anchors(page: Path) -> set[str]:
    """What hosts of repositories, and the site, name a page's headings."""
    headings = re.findall(r"^#{1,4} (.*)$", prose(page), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).strip().replace(" ", "-") for heading in headings}


def test_every_page_is_in_the_contents_once() -> None:
    listed = [entry for page in PAGES for entry in contents(page)]
    assert sorted(listed) == [page for page in PAGES if page != DOCS / "index.md"]


@pytest.mark.parametrize("page", [ROOT / "README.md", *PAGES], ids=lambda page: str(page.relative_to(ROOT)))
def test_links_to_headings_lead_to_headings(page: Path) -> None:
    for target in re.findall(r"\]\(([^)\s]+)\)", prose(page)):
        place, _, heading = target.partition("#")
        if heading and not place.startswith("http"):
            assert heading in anchors(page.parent / place if place else page), f"{page.name}: {target}"


@pytest.mark.exhaustive
def test_the_site_builds_without_a_warning(tmp_path: Path) -> None:
    pytest.importorskip("sphinx", reason="the site needs the extra docs")
    recipe = (ROOT / "Makefile").read_text(encoding="utf-8").partition("\nsite: setup\n\t$(BIN)/sphinx-build ")[2]
    options = recipe.partition("\n")[0].removesuffix(" site").split()
    assert "--fail-on-warning" in options
    build = [sys.executable, "-m", "sphinx", *options, tmp_path / "site"]
    done = subprocess.run(build, capture_output=True, text=True, cwd=ROOT, timeout=900)
    assert (done.returncode, done.stderr) == (0, "")
    for page in PAGES:
        assert (tmp_path / "site" / page.relative_to(DOCS).with_suffix(".html")).exists(), page
    assert 'id="secure_codream.run_local"' in (tmp_path / "site" / "api.html").read_text(encoding="utf-8")
