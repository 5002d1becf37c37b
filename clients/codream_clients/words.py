"""Text from the network, as it may be shown to a person."""

from __future__ import annotations

MOST_SHOWN = 512


def visible(text: str, most: int | None = MOST_SHOWN) -> str:
    r"""The text on one line, with all that moves a cursor or turns a line's order escaped; cut to `most` characters.

    Control characters, line ends, escape sequences and the marks that write text from right to left become such as
    `\x1b`, so that a terminal shows what was sent and does nothing of it.
    """
    shown = "".join(char if char.isprintable() else char.encode("unicode_escape").decode() for char in text)
    return shown if most is None or len(shown) <= most else shown[: most - 1] + "…"
