"""Numbers and errors as people read them."""

from __future__ import annotations

from collections.abc import Sequence


def format_bytes(count: float) -> str:
    """A number of bytes with its unit, in powers of 1,000: "1.2 MB"."""
    for unit in ("B", "kB", "MB", "GB"):
        if count < 999.5:
            return f"{count:.0f} {unit}" if unit == "B" or count >= 99.95 else f"{count:.1f} {unit}"
        count /= 1000
    return f"{count:,.1f} TB"


def clock_face(seconds: float) -> str:
    """Minutes and seconds, with hours where there are any: "01:15"."""
    minutes, rest = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes:02d}:{rest:02d}"


def percent(share: float) -> str:
    """A share as per cent with one decimal: "84.6 %"."""
    return f"{100 * share:.1f}\N{NO-BREAK SPACE}%"


def size(count: float) -> str:
    """A number of bytes with its unit, which stays on its line: "1.2 MB"."""
    return format_bytes(count).replace(" ", "\N{NO-BREAK SPACE}")


def duration(seconds: float) -> str:
    """Seconds in the unit that suits: "46 ms", "2.1 s", "3 min 05 s"."""
    if seconds < 0.9995:
        return f"{1000 * seconds:.0f}\N{NO-BREAK SPACE}ms"
    if seconds < 99.95:
        return f"{seconds:.1f}\N{NO-BREAK SPACE}s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    words = f"{hours} h {minutes:02d} min" if hours else f"{minutes} min {rest:02d} s"
    return words.replace(" ", "\N{NO-BREAK SPACE}")


def listed(names: Sequence[str]) -> str:
    """Names in a sentence: "a, b and c"."""
    return " and ".join(", ".join(names).rsplit(", ", 1))


def first_line(error: BaseException) -> str:
    """What an error says, in one line of 200 characters at most: the error's name where it says nothing."""
    return next(iter(str(error).splitlines()), "")[:200] or type(error).__name__


def counted(number: int, noun: str) -> str:
    """A number with its noun: "1 round", "1,200 rounds"."""
    return f"{number:,} {noun}" if number == 1 else f"{number:,} {noun}s"
