"""A process that is asked to stop closes its sockets and erases its secrets."""

from __future__ import annotations

import asyncio
import signal
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    pass


async def until_signal(work: Any) -> None:
    """Run until done; SIGINT and SIGTERM cancel it, so that sockets are closed and secrets erased."""
    task = asyncio.ensure_future(work)
    loop = asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, task.cancel)
    await task
