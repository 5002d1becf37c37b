"""A server that is started again, with what was written of the epoch that was running."""

from __future__ import annotations

from pathlib import Path

import pytest

from codream_protocols.messages import Seals
from codream_protocols.running import Delivered, Opened, Started
from codream_server.record_folder import RecordFolder, RecordFolderRefused
from secure_codream.deployment.server import _protocol
from secure_codream.simulation.wire import Federation


def test_entries_that_do_not_fit_are_refused_with_their_file(tmp_path: Path) -> None:
    """They are whole, so no crash made them; what to do is said, and the record is untouched."""
    federation = Federation(3, steps=1)
    assert federation.set_up()
    entries = federation.server_journal.entries
    folder = RecordFolder(tmp_path, roster=b"roster", charter=b"charter")
    arguments = (federation.charter, federation.roster, federation.course, folder, 1.0)
    for entry in entries:
        if isinstance(entry, Delivered):
            for member in federation.everybody:
                (item,) = [one for one in federation.sent if one.kind is Seals and one.member == member]
                assert isinstance(item.message, Seals)
                folder.sealed(member, item.message.items)
        folder.running(entry)
    assert _protocol(*arguments).step == 0
    assert isinstance(entries[0], Opened)
    for entry in (entries[0], Started(bytes(96))):
        folder.running(entry)
    with pytest.raises(RecordFolderRefused, match=r"running: found|running.*take that file away"):
        _protocol(*arguments)
    folder.given_up()
    assert _protocol(*arguments).step is None
    folder.close()
