"""Text from the network as a person sees it."""

from __future__ import annotations

import pytest

from codream_clients.words import visible


@pytest.mark.parametrize(
    ("sent", "shown"),
    [
        ("all rounds are over", "all rounds are over"),
        ("Zürich, 3 µs…", "Zürich, 3 µs…"),
        ("\x1b[2J\x07", r"\x1b[2J\x07"),
        ("two\nlines\r", r"two\nlines\r"),
        ("\u202egnp.exe", r"\u202egnp.exe"),
        ("\x9b31m", r"\x9b31m"),
        ("\u2028", r"\u2028"),
        ("\ufeff", r"\ufeff"),
    ],
)
def test_nothing_of_it_moves_a_cursor(sent: str, shown: str) -> None:
    assert visible(sent) == shown
    assert visible(sent).isprintable()


def test_it_is_cut_to_what_a_screen_takes() -> None:
    assert len(visible("a" * 10_000)) == 512
    assert visible("a" * 10_000, 3) == "aa…"
    assert len(visible("\U0010ffff" * 512)) == 512  # of what is shown, not of what came
    assert visible("a" * 10_000, None) == "a" * 10_000
