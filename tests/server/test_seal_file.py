"""Seals on the server's disk: whom each is for, beyond a part and a shelf, and a disk that does not take them."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from codream_protocols.hybrid import KEM_CIPHERTEXT_BYTES
from codream_protocols.messages import MAX_SEAL_BYTES, Seal
from codream_server.seal_file import MAGIC, PART_BYTES, SHELF_MEMBERS, SealFile


def opened(folder: Path) -> int:
    return os.open(folder / "seals", os.O_RDWR | os.O_CREAT)


def sealed(other: int, size: int = 112) -> Seal:
    return Seal(other, os.urandom(KEM_CIPHERTEXT_BYTES), os.urandom(size), bytes(64))


def put(file: SealFile, sender: int, items: tuple[Seal, ...]) -> dict[int, Seal]:
    file.put(sender, items)
    return {item.member: Seal(sender, item.kem, item.ciphertext, item.signature) for item in items}


def test_each_member_gets_what_was_sealed_for_it_and_so_it_does_from_another_process(tmp_path: Path) -> None:
    """The largest seals, of which three fill a part; receivers of four shelves; senders in no order."""
    descriptor = opened(tmp_path)
    file, receivers = SealFile(descriptor), (0, 1, SHELF_MEMBERS - 1, SHELF_MEMBERS, 99_999, 3 * SHELF_MEMBERS)
    rows = {
        sender: put(file, sender, tuple(sealed(one, MAX_SEAL_BYTES) for one in receivers)) for sender in (70_000, 5, 6)
    }
    file.sync()
    assert file.count == 18 and os.fstat(descriptor).st_size > 5 * PART_BYTES
    again = SealFile(descriptor)
    again.load()
    assert again.count == 18
    for one in (file, again):
        for receiver in receivers:
            assert one.of(receiver) == tuple(rows[sender][receiver] for sender in (5, 6, 70_000))
        assert one.of(2) == ()
    file.clear()
    assert file.of(0) == () and os.fstat(descriptor).st_size == 0
    put(file, 3, (sealed(0),))
    assert [one.member for one in file.of(0)] == [3]
    os.close(descriptor)


def test_what_a_disk_does_not_take_stays_in_memory_until_it_does(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    descriptor, real = opened(tmp_path), os.pwrite
    file = SealFile(descriptor)
    rows = {1: put(file, 1, (sealed(0),))}

    def full(descriptor: int, data: bytes, place: int) -> int:
        return real(descriptor, data[:100], place)

    with monkeypatch.context() as patched:
        patched.setattr(os, "pwrite", full)
        rows[2] = put(file, 2, (sealed(0),))
        with pytest.raises(OSError, match="takes a part"):
            file.sync()
    rows[3] = put(file, 3, (sealed(0, 48),))
    wanted = tuple(rows[sender][0] for sender in (1, 2, 3))
    assert file.of(0) == wanted
    file.sync()
    again = SealFile(descriptor)
    again.load()
    assert file.of(0) == wanted == again.of(0) and again.count == 3
    os.close(descriptor)


def test_a_full_disk_makes_the_file_no_longer_and_no_trace_of_what_it_took_a_part_of_stays(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    descriptor, real, takes = opened(tmp_path), os.pwrite, [0]
    file, rows = SealFile(descriptor), dict[int, dict[int, Seal]]()

    def full(descriptor: int, data: bytes, place: int) -> int:
        return real(descriptor, data[: takes[0]], place)

    with monkeypatch.context() as patched:
        patched.setattr(os, "pwrite", full)
        for sender in range(20):
            takes[0] = (10_000, 0, 1_250, 9)[sender % 4]  # all, nothing, most, and little more than a header
            rows[sender] = put(file, sender, (sealed(0, 48 + 8 * (sender % 3)),))
        takes[0] = 0
        with pytest.raises(OSError, match="takes a part"):
            file.sync()
    wanted = tuple(rows[sender][0] for sender in range(20))
    assert file.of(0) == wanted
    file.sync()
    again = SealFile(descriptor)
    again.load()
    assert file.of(0) == wanted == again.of(0) and again.count == 20
    assert os.fstat(descriptor).st_size < len(MAGIC) + PART_BYTES
    os.close(descriptor)


@pytest.mark.parametrize("size", [48, 49, 50, 51])
def test_what_a_disk_took_of_a_seal_is_never_read_as_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, size: int
) -> None:
    """Its sender chose the bytes: they look like records behind the shorter one that is written in its place."""
    monkeypatch.setattr("codream_server.seal_file.PART_BYTES", 4000)
    descriptor, real = opened(tmp_path), os.pwrite
    file, chosen = SealFile(descriptor), Seal(0, bytes(KEM_CIPHERTEXT_BYTES), b"\0\0\0\1" * 650, bytes(64))
    with monkeypatch.context() as patched:
        patched.setattr(os, "pwrite", lambda descriptor, data, place: real(descriptor, data[:3600], place))
        put(file, 1, (chosen,))
    put(file, 2, (sealed(0, size),))
    file.sync()  # the first one goes elsewhere: behind the other it has no room
    again = SealFile(descriptor)
    again.load()
    assert [one.member for one in again.of(0)] == [1, 2] and again.count == 2
    os.close(descriptor)


def test_seals_that_cannot_be_read_are_said_to_be(tmp_path: Path) -> None:
    descriptor = opened(tmp_path)
    file = SealFile(descriptor)
    put(file, 1, (sealed(0),))
    os.ftruncate(descriptor, len(MAGIC) + 100)
    with pytest.raises(OSError, match="not what was put there"):
        file.of(0)
    os.close(descriptor)
