"""A person's own function that is told of each round; others wait for this party, so it can hold up or end nothing."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")


def on_round_of(call: Callable[[T], object] | None) -> Callable[[T], None]:
    """The same, but that what it raises goes to the logger `secure_codream`, with its traceback."""

    def tell(found: T) -> None:
        try:
            if call is not None:
                call(found)
        except Exception:
            logging.getLogger("secure_codream").exception("on_round failed; the federation goes on")

    return tell
