"""What holds the pages to what happens: a page that shows something else is found."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.pages import Walkthrough, alike, fits, shown

PAGE = """
```text
# kept.txt
is written
```

```console
$ cat kept.txt
# kept.txt
is written
$ echo "12.5 kB at 00:01"; echo done
99 kB at 23:59
done
```
"""


def test_figures_differ_and_words_do_not() -> None:
    assert alike(["head 0123456789abcdef…, 12.5%"]) == alike(["head fedcba9876543210…, 3%"])
    assert fits(["a 1", "...", "c"], ["a 1", "b", "c"]) and fits(["..."], [])
    for printed in (["a 2", "c"], ["c", "a 1"], ["a 1"]):
        assert not fits(["a 1", "...", "c"], printed), printed
    assert not fits(["a"], ["a", "b"]) and not fits(["a", "b"], ["a"])
    assert fits(["b", "a"], ["a", "b"], ordered=False) and not fits(["b"], ["a", "b"], ordered=False)


def test_commands_and_their_lines() -> None:
    first, _ = shown(PAGE)
    assert (first.command, first.lines) == ("cat kept.txt", ["# kept.txt", "is written"])


@pytest.mark.parametrize("change", [None, ("is written\n$", "is not\n$"), ("cat kept", "cat other"), ("\ndone", "")])
def test_a_page_that_shows_something_else_is_found(tmp_path: Path, change: tuple[str, str] | None) -> None:
    folder = tmp_path / "start"
    folder.mkdir()
    reader = Walkthrough(folder, home="/home/you/start", replaced={})
    if change is None:
        reader.follow(PAGE)
    else:
        with pytest.raises(AssertionError):
            reader.follow(PAGE.replace(*change))
