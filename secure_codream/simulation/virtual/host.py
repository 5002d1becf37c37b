"""One process's virtual clients: they take the server's letters, and what each answers is timed.

A letter is one message for many members, encoded as on the wire and decoded once a process. Seconds are of this
thread's processor, with what was remembered in place of being computed, so that they say what a client's own machine
would take, whatever else runs on this one.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Iterable, Iterator
from typing import NamedTuple

from codream_protocols.charter import Policy
from codream_protocols.client import ClientProtocol, Compute, Send
from codream_protocols.errors import RemoteProtocolError
from codream_protocols.messages import (
    Advertisement,
    Survivors,
    SurvivorSignatures,
    ToClient,
    decode_to_client,
    encode_message,
)
from secure_codream.simulation.virtual.remembered import Remembered, VirtualClient
from secure_codream.simulation.virtual.scene import Scene

PERMISSIVE = Policy(losses=True, cuts=True)


class Letter(NamedTuple):
    """One message of the server for these members, ascending; None: greet the server."""

    members: list[int]
    message: ToClient | None
    frames: tuple[bytes, ...] = ()


class Errand(NamedTuple):
    """A part of a letter, for a worker: to these members the message of these bytes, or, None, that of the one before.

    No bytes at all: greet the server.
    """

    members: tuple[int, ...]
    data: bytes | None
    frames: tuple[bytes, ...] = ()


class Sent(NamedTuple):
    """One message of a member, as on the wire."""

    data: bytes
    frames: tuple[bytes, ...]


class Answer(NamedTuple):
    """What a member answers a letter: nothing, or some messages, and how long it computed, inputs included."""

    member: int
    seconds: float
    sent: tuple[Sent, ...]


class VirtualHost:
    """Some virtual clients of a scene.

    Args:
        scene: what is simulated.
        members: their numbers.
    """

    def __init__(self, scene: Scene, members: Iterable[int]) -> None:
        roster = scene.roster()
        charter = scene.charter(roster)
        self._scene, self.remembered = scene, Remembered()
        self._message: ToClient | None = None
        self._frames: tuple[bytes, ...] = ()
        self._silent = [scene.silent(step) for step in range(scene.steps)]
        self._clients: dict[int, ClientProtocol] = {
            member: VirtualClient(
                self.remembered,
                charter=charter,
                roster=roster,
                course=scene.course(),
                member=member,
                signer=scene.signer(member),
                policy=PERMISSIVE,
                random_bytes=scene.random(member),
            )
            for member in members
        }

    def answer(self, errand: Errand) -> Iterator[Answer]:
        """Hand a message to members, one after the other.

        Raises:
            RuntimeError: a virtual client refused what the simulated server sent; that is a fault of this package.
        """
        if errand.data is not None:
            self._message = decode_to_client(errand.data) if errand.data else None
            self._frames = errand.frames
        for member in errand.members:
            started, spared = time.thread_time(), self.remembered.seconds
            sent = self._of(member, self._message, self._frames)
            yield Answer(member, time.thread_time() - started + self.remembered.seconds - spared, sent)

    def _of(self, member: int, message: ToClient | None, frames: tuple[bytes, ...]) -> tuple[Sent, ...]:
        client = self._clients[member]
        if message is None:
            return (Sent(encode_message(client.hello()), ()),)
        if isinstance(message, Survivors | SurvivorSignatures) and member in self._silent[message.step]:
            return ()
        sent = []
        try:
            pending = deque(client.receive(message, frames))
            while pending:
                effect = pending.popleft()
                if isinstance(effect, Compute):
                    if member not in self._silent[effect.step]:
                        values = self._scene.inputs(member, effect.step)
                        pending.extend(client.provide(effect.plan, effect.step, values))
                elif isinstance(effect, Send):
                    if isinstance(effect.message, Advertisement):
                        self.remembered.played(effect.message)
                    sent.append(Sent(encode_message(effect.message), effect.frames))
        except RemoteProtocolError as error:
            raise RuntimeError(f"virtual client {member} refused {type(message).__name__}: {error}") from error
        return tuple(sent)
