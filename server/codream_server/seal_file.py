"""What members seal for each other, on the server's disk until their epoch is over.

Each of n members seals for k others, some 1.3 kB each: 10 GB of 100,000 members with 79 partners. In memory is where
each seal lies, in 8 bytes.

    magic | parts of 1 MB, each of one shelf: records, and zeros behind the last one
    record: whom it is for, 4 bytes, one more than its number | length, 4 bytes | seal, with its sender (MessagePack)

Seals come by sender and go by receiver. Receivers of near numbers share a shelf: so whoever hands all seals out, one
member after the other, reads one shelf after the other, each of which stays in the system's memory meanwhile, and not a
page of the disk for each seal.

What the disk does not take stays in memory until it does; a kill meanwhile costs the epoch. There is no digest: each
seal is signed by its sender, and its receiver checks that.
"""

from __future__ import annotations

import contextlib
import errno
import os
import struct
from array import array
from collections import defaultdict
from collections.abc import Iterable, Iterator

import msgspec

from codream_protocols import record_file
from codream_protocols.messages import Seal

VERSION = 1
MAGIC = b"secure-codream seals, version %d\n" % VERSION
SHELF_MEMBERS = 1024
PART_BYTES = 1 << 20
_HEADER = struct.Struct(">II")
_LENGTH_BITS = 20  # a seal, of at most some 260 kB, is shorter than a part
_DECODER: msgspec.msgpack.Decoder[Seal] = msgspec.msgpack.Decoder(Seal)


def check_version(beginning: bytes) -> None:
    """Refuse what another version wrote, as `record_file.check_version` does."""
    record_file.check_version(beginning, "seals", VERSION)


class SealFile:
    """The seals of one epoch.

    Args:
        descriptor: of a file that is open for reading and writing; its owner closes it.

    Attributes:
        count: how many seals there are.
    """

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor
        self._begin()

    def _begin(self) -> None:
        self.count = 0
        self._places: defaultdict[int, array[int]] = defaultdict(lambda: array("Q"))  # of each receiver's seals
        self._kept: defaultdict[int, list[Seal]] = defaultdict(list)  # what the disk did not take
        self._torn: dict[int, int] = {}  # where it took a part of a record, which is its part's last: of how many bytes
        self._rooms: dict[int, tuple[int, int]] = {}  # of each shelf, where its next record goes, and its part ends
        self._parts = 0
        self._synced = True

    def put(self, sender: int, items: Iterable[Seal]) -> None:
        """What a member has sealed, each for the member that it names. It does not raise."""
        for item in items:
            seal = item.sent_by(sender)
            try:
                self._write(item.member, msgspec.msgpack.encode(seal))
            except OSError:
                self._kept[item.member].append(seal)
            self.count += 1

    def of(self, receiver: int) -> tuple[Seal, ...]:
        """What was sealed for a member, by sender.

        Raises:
            OSError: the disk does not give it.
        """
        found = [self._read(place) for place in self._places.get(receiver, ())]
        return tuple(sorted([*found, *self._kept.get(receiver, ())], key=lambda seal: seal.member))

    def sync(self) -> None:
        """Return once all of it is on the disk, what it did not take before too; raises `OSError`."""
        for receiver, seals in self._kept.items():
            while seals:
                self._write(receiver, msgspec.msgpack.encode(seals[-1]))
                seals.pop()
        self._kept.clear()
        for place, length in [*self._torn.items()]:
            self._write_at(place, bytes(length))
            del self._torn[place]
        if not self._synced:
            os.fsync(self._descriptor)
            self._synced = True

    def clear(self) -> None:
        """The epoch is over: nothing is there any more. It does not raise."""
        self._begin()
        with contextlib.suppress(OSError):  # what stays is counted, and found to be more than an epoch has
            os.ftruncate(self._descriptor, 0)

    def load(self) -> None:
        """Find what another process has put there; raises `OSError`."""
        self._begin()
        if os.pread(self._descriptor, len(MAGIC), 0) != MAGIC:
            return
        size = os.fstat(self._descriptor).st_size
        for number, start in enumerate(range(len(MAGIC), size, PART_BYTES), start=1):
            for receiver, place in _records(os.pread(self._descriptor, PART_BYTES, start), start):
                self._places[receiver].append(place)
                self.count += 1
            self._parts = number

    def _write(self, receiver: int, data: bytes) -> None:
        record = _HEADER.pack(receiver + 1, len(data)) + data
        shelf = receiver // SHELF_MEMBERS
        place, end = self._rooms.get(shelf, (0, 0))
        if place + len(record) > end:
            if self._parts == 0:
                self._write_at(0, MAGIC)
            place = len(MAGIC) + self._parts * PART_BYTES
            end, self._parts = place + PART_BYTES, self._parts + 1
            self._rooms[shelf] = place, end  # also if it fails: a full disk must not take a part for each seal
        self._synced = False
        torn = self._torn.get(place, 0)
        self._torn[place] = max(torn, len(record))
        self._write_at(place, record.ljust(torn, b"\0"))
        del self._torn[place]
        self._rooms[shelf] = place + len(record), end
        self._places[receiver].append((place + _HEADER.size) << _LENGTH_BITS | len(data))

    def _write_at(self, place: int, data: bytes) -> None:
        if os.pwrite(self._descriptor, data, place) < len(data):
            raise OSError(errno.ENOSPC, "a disk that takes a part of a record of seals")

    def _read(self, place: int) -> Seal:
        data = os.pread(self._descriptor, place & ((1 << _LENGTH_BITS) - 1), place >> _LENGTH_BITS)
        try:
            return _DECODER.decode(data)
        except msgspec.DecodeError as error:
            raise OSError(errno.EIO, "a seal that is not what was put there") from error


def _records(part: bytes, start: int) -> Iterator[tuple[int, int]]:
    """Whom each record of a part is for, and where its seal lies."""
    at = 0
    while at + _HEADER.size <= len(part):
        receiver, length = _HEADER.unpack_from(part, at)
        at += _HEADER.size
        if receiver == 0 or at + length > len(part):
            return
        yield receiver - 1, (start + at) << _LENGTH_BITS | length
        at += length
