"""Which versions of which packages made a file."""

from __future__ import annotations

import platform
from importlib import metadata


def versions_of(*packages: str, python: bool = True) -> dict[str, str]:
    """Package -> version, of those that are installed; Python's first, if wanted."""
    found = {"python": platform.python_version()} if python else {}
    for package in packages:
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return found
