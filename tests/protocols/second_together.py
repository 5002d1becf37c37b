"""Members of the second implementation among real clients, with a real server.

The real machines are all that is imported of this project, so that the second implementation owes it nothing.
"""

from __future__ import annotations

import secrets
from collections.abc import Callable, Mapping

from codream_protocols.messages import decode_to_client, decode_to_server, encode_message
from codream_protocols.server import Effect, EpochCertified, Phase, SendTo, StepFinished
from tests.protocols.recorded_epochs import Epoch
from tests.protocols.second_implementation import Member

Frames = tuple[bytes, ...]


class Together:
    """A recorded epoch's machines and losses, with fresh secrets, and these members in the place of its clients."""

    def __init__(self, run: Epoch, members: Mapping[int, Member]) -> None:
        self.run, self.members = run, members
        run.clients = {number: run.client(number, secrets.token_bytes) for number in run.members}
        self.changed: Callable[[str, bytes, Frames], tuple[bytes, Frames]] = lambda kind, data, frames: (data, frames)

    def epoch(self) -> None:
        """Run it to its end, or until nobody votes any more."""
        server, run = self.run.server, self.run
        for number, client in run.clients.items():
            server.hello(number, client.hello())
        waiting = list(server.open_epoch(tuple(run.members)))
        while waiting or server.phase not in (Phase.IDLE, Phase.VOTING):
            waiting = waiting or server.expire()
            effect = waiting.pop(0)
            if isinstance(effect, StepFinished):
                run.sums.append(effect)
            elif isinstance(effect, EpochCertified):
                run.certified.append(effect)
            elif isinstance(effect, SendTo) and effect.member in self.members:
                waiting += self._to_second(effect)
            elif isinstance(effect, SendTo):
                waiting += self._to_real(effect)

    def _to_second(self, effect: SendTo) -> list[Effect]:
        data, frames = self.changed(type(effect.message).__name__, encode_message(effect.message), effect.frames)
        waiting = []
        for answer, more in self.members[effect.member].receive(data, frames):
            message = decode_to_server(answer)
            if not self.run.is_lost(effect.member, message):
                waiting += self.run.server.receive(effect.member, message, tuple(more))
        return waiting

    def _to_real(self, effect: SendTo) -> list[Effect]:
        run, waiting = self.run, list[Effect]()
        effects = run.clients[effect.member].receive(decode_to_client(encode_message(effect.message)), effect.frames)
        while effects:
            done = effects.pop(0)
            if hasattr(done, "task"):
                effects += run.provide(effect.member, done)
            elif hasattr(done, "frames") and not run.is_lost(effect.member, done.message):
                waiting += run.server.receive(effect.member, done.message, done.frames)
        return waiting
