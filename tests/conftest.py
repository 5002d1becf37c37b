"""In which order tests are handed out."""

from __future__ import annotations

import pytest


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Those over real sockets and of real processes first: few and long, and what comes last leaves other cores idle.

    With `--no-loadscope-reorder` files are handed out as they stand here; xdist's own order, by the number of tests in
    a file, has these last.
    """
    items.sort(key=lambda item: item.path.parent.name != "system")
