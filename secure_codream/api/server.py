"""The aggregator in a person's own program. It needs no torch."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from secure_codream.api.beside import arun, in_this_loop, run
from secure_codream.deployment.server import run_server
from secure_codream.deployment.signals import Stop

OnRound = Callable[[dict[str, Any]], object]


class Server:
    """The aggregator of a federation, from its folder.

    Args:
        folder: the server's folder.
    """

    def __init__(self, folder: str | Path) -> None:
        self._folder = Path(folder)

    def run(self, *, listen: str | None = None, on_round: OnRound | None = None) -> None:
        """Serve until the federation is over; in a thread, and in a notebook, too.

        Args:
            listen: endpoint to bind; None takes the roster's address.
            on_round: called with each `round_finished` event, a dict as docs/events.md has it, in the thread that
                serves, so it should be brief. What it raises goes to the logger `secure_codream`, and ends nothing.

        Raises:
            KeyboardInterrupt: it was interrupted, or stopped by SIGTERM; the sockets are closed. Run it again to go on.
            ProtocolError, ConfigError, KeyFileError: see `secure_codream.deployment.server.run_server`.
        """
        run(self._running(listen, on_round))

    async def arun(self, *, listen: str | None = None, on_round: OnRound | None = None) -> None:
        """The same beside what this event loop does, which also calls `on_round`; cancel it to stop."""
        await arun(self._running(listen, in_this_loop(on_round)))

    def _running(self, listen: str | None, on_round: OnRound | None) -> Callable[[Stop | None], None]:
        return lambda stop: run_server(self._folder, listen=listen, on_round=on_round, stop=stop)
