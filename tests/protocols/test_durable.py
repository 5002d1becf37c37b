"""Whole writes: whatever call fails, and wherever a process is killed, a file is the old one or the new one."""

import os
import stat
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from codream_protocols.durable import PRIVATE, PUBLIC, try_lock, write_all, write_whole, written_whole

OLD, NEW = b"old" * 50, b"new" * 70
STEPS = ["os.open", "os.write", "os.fsync", "pathlib.Path.replace"]


def names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


def failing(call: Callable[..., Any], at: int = 0) -> Callable[..., Any]:
    """`call`, with a full disk at its `at`-th time."""
    left = [at]

    def fail(*parts: Any, **named: Any) -> Any:
        left[0] -= 1
        if left[0] < 0:
            raise OSError(28, "No space left on device")
        return call(*parts, **named)

    return fail


@pytest.mark.parametrize("step", STEPS)
@pytest.mark.parametrize("before", [OLD, None])
def test_a_step_that_fails_leaves_the_old_file_and_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: str, before: bytes | None
) -> None:
    path = tmp_path / "file"
    if before is not None:
        write_whole(path, before)
    owner, _, name = step.rpartition(".")
    with monkeypatch.context() as patched:
        patched.setattr(step, failing(getattr(os if owner == "os" else Path, name)))
        with pytest.raises(OSError, match="No space left"):
            write_whole(path, NEW)
    assert (path.read_bytes() if path.exists() else None) == before
    assert names(tmp_path) == ({"file"} if before is not None else set())
    write_whole(path, NEW)  # and it goes on
    assert path.read_bytes() == NEW


def test_a_folder_that_is_not_synced_is_said_although_the_file_is_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("os.fsync", failing(os.fsync, at=1))
    with pytest.raises(OSError, match="No space left"):
        write_whole(tmp_path / "file", NEW)
    assert (tmp_path / "file").read_bytes() == NEW and names(tmp_path) == {"file"}


def test_no_descriptor_is_left_open(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = len(list(Path("/proc/self/fd").iterdir()))
    write_whole(tmp_path / "file", OLD)
    with monkeypatch.context() as patched:
        patched.setattr("os.write", failing(os.write))
        with pytest.raises(OSError, match="No space left"):
            write_whole(tmp_path / "file", NEW)
    assert len(list(Path("/proc/self/fd").iterdir())) == before


KILLED = """
import os, signal, sys
from pathlib import Path
from codream_protocols.durable import write_whole
from tests.protocols.test_durable import NEW, OLD

folder = Path(sys.argv[1])

def child(path, place, half):
    "Kill this process at its place-th call; of a write, half is done before."
    left = [place]
    def at(call, before=lambda *parts: None):
        def counted(*parts, **named):
            left[0] -= 1
            if left[0] < 0:
                before(*parts)
                os.kill(os.getpid(), signal.SIGKILL)
            return call(*parts, **named)
        return counted
    write = os.write
    os.write = at(os.write, lambda file, data: write(file, data[: len(data) // 2]) if half else None)
    os.open, os.fsync, os.close, Path.replace = map(at, (os.open, os.fsync, os.close, Path.replace))
    write_whole(path, NEW)
    os._exit(0)

place = survived = 0
while not survived:
    for half in (False, True):
        path = folder / f"{place:02d}-{half}" / "file"
        path.parent.mkdir()
        write_whole(path, OLD)
        pid = os.fork()
        if pid == 0:
            child(path, place, half)
        survived = os.waitpid(pid, 0)[1] == 0
    place += 1
"""


def test_a_process_killed_at_any_call_leaves_the_old_file_or_the_new_one(tmp_path: Path) -> None:
    """At each open, write (also half-way through it), fsync and rename."""
    subprocess.run([sys.executable, "-c", KILLED, str(tmp_path)], check=True, cwd=Path(__file__).parents[2])
    folders = sorted(tmp_path.iterdir())
    found = [(folder / "file").read_bytes() for folder in folders]
    assert set(found) == {OLD, NEW} and found == sorted(found, reverse=True)  # old until the rename, new from then on
    assert found.count(OLD) == 2 * 4 and found.count(NEW) >= 2 * 4  # open, write, fsync, rename; and from then on
    for folder in folders:
        assert len(names(folder)) <= 2  # beside the file, what was being written
        write_whole(folder / "file", NEW)
        assert names(folder) == {"file"} and (folder / "file").read_bytes() == NEW


def test_what_raises_while_a_file_is_written_leaves_the_old_one(tmp_path: Path) -> None:
    write_whole(tmp_path / "file", OLD)
    with pytest.raises(KeyboardInterrupt), written_whole(tmp_path / "file") as file:
        file.write(NEW)
        raise KeyboardInterrupt
    assert (tmp_path / "file").read_bytes() == OLD and names(tmp_path) == {"file"}
    with written_whole(tmp_path / "file") as file:
        file.write(NEW[:50])
        assert (tmp_path / "file").read_bytes() == OLD
        file.write(NEW[50:])
    assert (tmp_path / "file").read_bytes() == NEW


def test_a_lock_is_held_by_one(tmp_path: Path) -> None:
    with (tmp_path / "lock").open("wb") as first, (tmp_path / "lock").open("wb") as second:
        assert try_lock(first.fileno()) and not try_lock(second.fileno())
        first.close()
        assert try_lock(second.fileno())


def test_what_is_synced_and_when(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The bytes before the rename, the folder after it, both before the writer returns."""
    synced: list[tuple[bool, int, bool]] = []
    real = os.fsync

    def fsync(descriptor: int) -> None:
        status = os.fstat(descriptor)
        is_folder = stat.S_ISDIR(status.st_mode)
        synced.append((is_folder, 0 if is_folder else status.st_size, (tmp_path / "file").exists()))
        real(descriptor)

    monkeypatch.setattr("os.fsync", fsync)
    write_whole(tmp_path / "file", NEW)
    assert synced == [(False, len(NEW), False), (True, 0, True)]


def test_what_a_killed_process_left_of_a_file_goes_with_the_next_write(tmp_path: Path) -> None:
    dead = subprocess.Popen([sys.executable, "-c", ""])
    dead.wait()
    for writer in (dead.pid, os.getpid(), os.getppid()):  # ours: in a container every process may have one number
        (tmp_path / f".file.{writer}.partial").write_bytes(b"half")
    (tmp_path / f".other.{dead.pid}.partial").write_bytes(b"half")
    write_whole(tmp_path / "file", NEW)
    assert names(tmp_path) == {
        "file",
        f".file.{os.getppid()}.partial",  # its process may still be writing
        f".other.{dead.pid}.partial",  # not this file's
    }


def test_links_are_replaced_and_never_written_through(tmp_path: Path) -> None:
    elsewhere = tmp_path / "elsewhere"
    elsewhere.write_bytes(OLD)
    folder = tmp_path / "folder"
    folder.mkdir()
    for name in ("file", f".file.{os.getpid()}.partial"):
        (folder / name).symlink_to(elsewhere)
    write_whole(folder / "file", NEW)
    assert elsewhere.read_bytes() == OLD
    assert not (folder / "file").is_symlink() and (folder / "file").read_bytes() == NEW


@pytest.mark.parametrize(("mode", "found"), [(PRIVATE, 0o600), (PUBLIC, 0o640)])
def test_who_may_read_it_is_said_by_its_writer(tmp_path: Path, mode: int, found: int) -> None:
    before = os.umask(0o027)
    try:
        write_whole(tmp_path / "file", NEW, mode)
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "file").stat().st_mode) == found


def test_a_call_that_writes_less_is_followed_by_another(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = os.write
    monkeypatch.setattr("os.write", lambda descriptor, data: real(descriptor, data[:7]))
    write_whole(tmp_path / "file", NEW)
    assert (tmp_path / "file").read_bytes() == NEW
    with (tmp_path / "other").open("wb") as file:
        write_all(file.fileno(), NEW)
    assert (tmp_path / "other").read_bytes() == NEW
