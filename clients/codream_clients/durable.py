"""What a file that must outlast its process is written with: whole writes, synced folders, and a chain of digests."""

import hashlib
import os
from pathlib import Path


def chained(previous: str, content: bytes) -> str:
    """SHA-256, in hexadecimal, over the digest before (hexadecimal too) and `content`."""
    return hashlib.sha256(bytes.fromhex(previous) + content).hexdigest()


def write_all(descriptor: int, content: bytes) -> None:
    """All of it: a single call may write less. Raises `OSError`."""
    view = memoryview(content)
    while view:
        view = view[os.write(descriptor, view) :]


def sync_folder(folder: Path) -> None:
    """Returns once what was made, renamed or removed in `folder` is on the disk. Raises `OSError`."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
