"""What a running party writes of how it stands (`reports.status`)."""

from __future__ import annotations

import asyncio
import contextlib
import os
import time
from collections.abc import Awaitable, Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from codream_protocols.charter import Charter
from codream_protocols.course import Course
from codream_server.standing import Standing
from secure_codream.reports.status import SERVER, Person, Status, replace_status

if TYPE_CHECKING:
    from codream_clients.runner import ClientRunner
    from codream_server.runner import ServerRunner

EVERY = 1.0  # seconds
FINISHED = "finished"
SILENT = 10.0  # seconds without a word, after which a client says that it waits for the server

_T = TypeVar("_T")


class StatusFiles:
    """Both files of one party. A disk that does not take them stops nobody: `status` says how old they are.

    Args:
        folder: the party's.
        party: a client's name, or "server".
        federation: its name.
        charter: the charter.
        epochs: of the course.
    """

    def __init__(self, folder: Path, party: str, federation: str, charter: Charter, epochs: int) -> None:
        self._folder = folder
        self._always: dict[str, Any] = {
            "party": party,
            "federation": federation,
            "charter": charter.digest.hex(),
            "process": os.getpid(),
            "began": time.time(),
            "epochs": epochs,
        }

    def write(self, phase: str, certified: int, **more: Any) -> None:
        """Replace them."""
        status = Status(**self._always, written=time.time(), phase=phase, certified=certified, **more)
        with contextlib.suppress(OSError):
            replace_status(self._folder, status)

    def of_server(self, runner: ServerRunner, found: Standing) -> None:
        """What a server says of itself once a second."""
        now = time.time()
        members = tuple(
            Person(name=one.name, present=one.present, heard=None if one.heard is None else now - one.heard)
            for one in found.members
        )
        waiting = tuple(one for one in members if one.name in found.waiting)
        story = runner.story
        self.write(
            found.phase,
            found.certified,
            step=found.step,
            steps=found.steps,
            waiting=waiting,
            since=None if found.seconds is None else now - found.seconds,
            members=members,
            secure_steps=story.secure_steps,
            given_up=story.given_up,
            refused=sum(story.refusals) + sum(story.refused_by),
            bytes_up=found.bytes_up,
            bytes_down=found.bytes_down,
        )

    def of_client(self, runner: ClientRunner, course: Course, certified: int, phase: ClientPhase) -> None:
        """What a client says of itself, and of others what the server has told it, as the server's word."""
        in_epoch, step, silence = runner.standing
        now = time.time()
        over = phase.name(in_epoch=False) == FINISHED
        waits = not over and (silence is None or silence > SILENT)
        heard = None if silence is None else now - silence
        others, told_for = ((), None) if waits or over else runner.word.now()
        waiting = [
            Person(name=one.name, present=one.present, heard=None if one.heard is None else now - one.heard)
            for one in others
        ]
        if waits:
            waiting = [Person(name=SERVER, present=False, heard=heard)]
        self.write(
            phase.name(in_epoch=in_epoch),
            certified,
            step=step if in_epoch else None,
            steps=len(course.schedule(certified)) if in_epoch and certified < course.epochs else None,
            waiting=tuple(waiting),
            since=(heard or self._always["began"]) if waits else None if told_for is None else now - told_for,
            told=told_for is not None,
        )


class ClientPhase:
    """What a client is at, by what its log says."""

    def __init__(self) -> None:
        self._apart: str | None = "starting"

    def saw(self, event: Mapping[str, Any]) -> None:
        """A line of the log."""
        match event["event"]:
            case "warm-up":
                self._apart = "training alone"
            case "resume":
                self._apart = "learning what it missed"
            case "prepared":
                self._apart = None
            case "finished" | "over":
                self._apart = FINISHED

    def name(self, *, in_epoch: bool) -> str:
        """In words."""
        return self._apart or ("in an epoch" if in_epoch else "between epochs")


async def shown(work: Awaitable[_T], show: Callable[[], object], every: float = EVERY) -> _T:
    """Do some work, and show how it stands meanwhile."""

    async def showing() -> None:
        while True:
            show()
            await asyncio.sleep(every)

    ticking = asyncio.ensure_future(showing())
    try:
        return await work
    finally:
        ticking.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await ticking
