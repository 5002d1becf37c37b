"""The FedDream dataset: a window in memory, every batch on disk, and never half a file."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from codream_server.feddream import FedDreamDataset, read_batches


def batch(value: float) -> tuple[np.ndarray, np.ndarray]:
    return np.full((2, 1, 2, 2), value, np.float32), np.full((2, 3), -value, np.float32)


def into(folder: Path) -> Callable[[str, bytes], object]:
    return lambda name, content: (folder / name).write_bytes(content)


def test_window_holds_the_newest_oldest_first() -> None:
    dataset = FedDreamDataset(2)
    for number in range(3):
        dataset.add(number, *batch(number))
    assert [dreams[0, 0, 0, 0] for dreams, _ in dataset.batches] == [1, 2]
    assert [labels[0, 0] for _, labels in dataset.batches] == [-1, -2]


def test_folder_holds_every_batch(tmp_path: Path) -> None:
    dataset = FedDreamDataset(1, into(tmp_path))
    for number in (0, 1, 11):
        dataset.add(number, *batch(number))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["round-000.npz", "round-001.npz", "round-011.npz"]
    found = read_batches(tmp_path)
    assert [dreams[0, 0, 0, 0] for dreams, _ in found] == [0, 1, 11]
    assert all(dreams.dtype == labels.dtype == np.float32 for dreams, labels in found)
    assert [labels.shape for _, labels in found] == [(2, 3)] * 3


def test_batch_that_could_not_be_written_is_given_again_and_is_in_the_window_once(tmp_path: Path) -> None:
    tries: list[str] = []

    def write(name: str, content: bytes) -> object:
        tries.append(name)
        if len(tries) == 1:
            raise OSError("no space left on device")
        return into(tmp_path)(name, content)

    dataset = FedDreamDataset(3, write)
    with pytest.raises(OSError, match="no space"):
        dataset.add(0, *batch(1))
    dataset.add(0, *batch(1))
    assert len(dataset.batches) == len(read_batches(tmp_path)) == 1


def test_same_round_again_replaces_its_file(tmp_path: Path) -> None:
    dataset = FedDreamDataset(3, into(tmp_path))
    dataset.add(0, *batch(1))
    dataset.add(0, *batch(2))
    assert [dreams[0, 0, 0, 0] for dreams, _ in read_batches(tmp_path)] == [2]
