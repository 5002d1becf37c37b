"""What a page shows of a terminal, done: its files are written, its commands typed, and their lines compared.

A fenced `console` block has commands, each after `$ `, and the lines that each prints, `...` for some left out; a block
that begins with `# NAME` is a file. `server` and `client` run beside what follows, as in terminals of their own.
"""

from __future__ import annotations

import os
import re
import shlex
import socket
import subprocess
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
FENCED = re.compile(r"^ *```(\w+)\n(.*?)^ *```", re.MULTILINE | re.DOTALL)
FINGERPRINT = r"\b[0-9a-f]{4}( [0-9a-f]{4}){9}\b"
LEFT_OUT = "..."
_DIFFERS = (
    (FINGERPRINT, "FINGERPRINT"),
    (r"\b[0-9a-f]{64}\b|\b[0-9a-f]{16}…", "DIGEST"),
    (r"\b\d{4}-\d\d-\d\d\b", "DAY"),
    (r"\b\d\d(:\d\d)+\b", "TIME"),
    (r"\b\d+(\.\d+)?(e-\d+)?%|\b\d+\.\d+(e-\d+)?\b", "FIGURE"),
    (r"\b(FIGURE|\d+) (B|kB|MB|GB)\b", "SIZE"),
    (r"\b\w+ joined:", "NAME joined:"),
    (r"\s+", " "),
)
_PATIENCE = 900.0  # seconds; a busy machine is no fault of a page


@dataclass
class Shown:
    """A command, and the lines that a page shows of it."""

    command: str
    lines: list[str] = field(default_factory=list)


def shown(text: str) -> list[Shown]:
    """The commands of console blocks, in order; of one block's text, or of a page."""
    found: list[Shown] = []
    for block in [block for kind, block in FENCED.findall(text) if kind == "console"] or [text]:
        for line in block.splitlines():
            if line.startswith("$ "):
                found.append(Shown(line[2:]))
            elif found:
                found[-1].lines.append(line)
    return found


def alike(lines: list[str]) -> list[str]:
    """What differs from run to run is the same here."""
    kept = []
    for line in lines:
        text = line
        for pattern, name in _DIFFERS:
            text = re.sub(pattern, name, text)
        kept.append(text.rstrip())
    return kept


def fits(expected: list[str], printed: list[str], *, ordered: bool = True) -> bool:
    """Whether these lines were printed: all of them, and no others but where `...` leaves some out."""
    wanted, got = alike([line for line in expected if line.strip() != LEFT_OUT]), alike(printed)
    if LEFT_OUT not in [line.strip() for line in expected]:
        return wanted == got if ordered else sorted(wanted) == sorted(got)
    left = iter(got)
    return all(line in left for line in wanted) if ordered else not set(wanted) - set(got)


def matches(pattern: str, lines: list[str]) -> list[str]:
    """What fits a pattern, in order."""
    return [match[0] for match in re.finditer(pattern, "\n".join(lines))]


def free_port() -> str:
    """A port of this machine that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return str(probe.getsockname()[1])


class Walkthrough:
    """Somebody who does what a page says.

    Args:
        folder: where they start; the page calls it `home`.
        home: what the page shows in its place.
        replaced: texts of the page that are others here, such as a port.
        others: whose commands a page leaves out, since they are the same as somebody's: (somebody, the others).
    """

    def __init__(
        self, folder: Path, *, home: str, replaced: dict[str, str], others: tuple[str, tuple[str, ...]] = ("", ())
    ) -> None:
        self._folder, self._home, self._replaced, self._others = folder, home, replaced, others
        self._fingerprints: dict[str, str] = {}  # the page's -> those of here
        self._last: tuple[int, list[str], str] = (0, [], "")  # what a command came to
        self._beside: list[tuple[Shown, subprocess.Popen[Any], Path]] = []
        programs = folder.parent / "bin"
        programs.mkdir()
        program = programs / "secure-codream"
        program.write_text(f'#!/bin/sh\nexec "{sys.executable}" -m secure_codream "$@"\n')
        program.chmod(0o755)
        paths = os.pathsep.join([str(programs), str(Path(sys.executable).parent), os.environ["PATH"]])
        sources = os.pathsep.join(sys.path)  # relative ones would lead nowhere from here
        self._environment = {
            **os.environ,
            "PATH": paths,
            "PYTHONPATH": sources,
            "OMP_NUM_THREADS": "1",
            "NO_COLOR": "1",
        }

    def follow(self, page: str) -> None:
        """Do all of it, in order; every process has ended afterwards."""
        for here, there in self._replaced.items():
            page = page.replace(here, there)
        try:
            for kind, text in FENCED.findall(page):
                name = re.match(r"# ([\w./-]+\.\w+)\n", text)
                if kind == "console":
                    for one in shown(text):
                        for typed in (one, *self._of_others(one)):
                            self._type(typed)
                elif name is not None:
                    (self._folder / name[1]).write_text(text)
            self._wait()
        finally:
            for _, process, _ in self._beside:
                process.kill()
                process.wait()

    def _of_others(self, one: Shown) -> list[Shown]:
        somebody, others = self._others
        if not others or somebody not in one.command or any(other in one.command for other in others):
            return []
        return [Shown(one.command.replace(somebody, other), [LEFT_OUT]) for other in others]

    def _type(self, one: Shown) -> None:
        one = Shown(re.sub(FINGERPRINT, lambda seen: self._fingerprints.get(seen[0], seen[0]), one.command), one.lines)
        words = one.command.split()
        if words[:2] in (["secure-codream", "server"], ["secure-codream", "client"]):
            output = self._folder.parent / f"terminal-{len(self._beside)}"
            with output.open("wb") as stream:
                process = subprocess.Popen(
                    shlex.split(one.command), stdout=stream, stderr=stream, cwd=self._folder, env=self._environment
                )
            self._beside.append((one, process, output))
        elif words[1:2] in (["status"], ["doctor"]) and self._beside:
            end = time.monotonic() + _PATIENCE
            while not self._shows(one):  # who reads on has waited until it does
                assert time.monotonic() < end, (one.command, self._last)
                time.sleep(0.5)
        else:
            self._wait()
            assert self._shows(one), (one.command, self._last)

    def _shows(self, one: Shown) -> bool:
        """Run a command: whether it ends and prints as the page says. Fingerprints that it prints are remembered."""
        code, printed, _ = self._last = self._run(one)
        fails = any(line.startswith("failed: ") for line in one.lines)
        as_shown = code == int(fails) and fits(one.lines, printed)
        if as_shown and LEFT_OUT not in one.lines:
            self._fingerprints.update(zip(matches(FINGERPRINT, one.lines), matches(FINGERPRINT, printed), strict=True))
        return as_shown

    def _run(self, one: Shown) -> tuple[int, list[str], str]:
        """A command's exit code, its lines, and what it says of errors."""
        done = subprocess.run(
            one.command,
            shell=True,
            capture_output=True,
            text=True,
            cwd=self._folder,
            env=self._environment,
            timeout=900,
        )
        return done.returncode, self._seen(done.stdout), done.stderr

    def _wait(self) -> None:
        """The processes that run beside are at their end, without a failure, and printed what the page shows."""
        for one, process, output in self._beside:
            assert process.wait(timeout=_PATIENCE) == 0, (one.command, output.read_text())
            printed = self._seen(output.read_text())
            assert fits(one.lines, printed, ordered=False), (one.command, "\n".join(printed))
        self._beside.clear()

    def _seen(self, text: str) -> list[str]:
        return text.replace(str(self._folder), self._home).splitlines()
