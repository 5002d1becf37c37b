"""How partitions and seeds are written in a comparison's file and in its flags."""

from __future__ import annotations

import re
from typing import Any

from pydantic import ValidationError

from secure_codream.configuration.client import DataTable

MOST_SEEDS = 100_000
PARTITIONS = "iid, dirichlet:ALPHA, dirichlet-by-label:ALPHA, shards:NUMBER"


def partition_fields(text: str) -> dict[str, Any]:
    """`dirichlet:0.5` as fields of a `DataTable`.

    Raises:
        ValueError: no partition; the text lists those allowed.
    """
    scheme, colon, number = text.partition(":")
    key = {"dirichlet": "alpha", "dirichlet-by-label": "alpha", "shards": "shards"}.get(scheme)
    fields: dict[str, Any] = {"partition": scheme}
    try:
        if key is not None and colon:
            fields[key] = float(number) if key == "alpha" else int(number)
            DataTable(**fields)
        elif text != "iid":
            raise ValueError
    except (ValueError, ValidationError):
        raise ValueError(f"{text!r} is no partition; allowed are {PARTITIONS}; numbers above 0") from None
    return fields


def parse_seeds(text: str) -> list[int]:
    """`0-4` or `0,2,5-7` as numbers.

    Raises:
        ValueError: anything else.
    """
    seeds: list[int] = []
    for part in text.split(","):
        found = re.fullmatch(r"\s*(\d{1,9})(?:-(\d{1,9}))?\s*", part)
        if not found or int(found[2] or found[1]) - int(found[1]) not in range(MOST_SEEDS):
            raise ValueError(f"{part.strip()!r} is no seed; allowed are numbers and ranges, such as 0,2 or 0-4")
        seeds.extend(range(int(found[1]), int(found[2] or found[1]) + 1))
    return seeds
