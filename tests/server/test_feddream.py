"""The FedDream dataset: a window in memory, every batch on disk, and never half a file."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from codream_server.feddream import FedDreamDataset, read_batches


def batch(value: float) -> tuple[np.ndarray, np.ndarray]:
    return np.full((2, 1, 2, 2), value, np.float32), np.full((2, 3), -value, np.float32)


def test_window_holds_the_newest_oldest_first() -> None:
    dataset = FedDreamDataset(2)
    for number in range(3):
        dataset.add(number, *batch(number))
    assert [dreams[0, 0, 0, 0] for dreams, _ in dataset.batches] == [1, 2]
    assert [labels[0, 0] for _, labels in dataset.batches] == [-1, -2]


def test_folder_holds_every_batch(tmp_path: Path) -> None:
    dataset = FedDreamDataset(1, tmp_path / "new" / "rounds")
    for number in (0, 1, 11):
        dataset.add(number, *batch(number))
    folder = tmp_path / "new" / "rounds"
    assert sorted(path.name for path in folder.iterdir()) == ["round-000.npz", "round-001.npz", "round-011.npz"]
    found = read_batches(folder)
    assert [dreams[0, 0, 0, 0] for dreams, _ in found] == [0, 1, 11]
    assert all(dreams.dtype == labels.dtype == np.float32 for dreams, labels in found)
    assert [labels.shape for _, labels in found] == [(2, 3)] * 3


def test_interrupted_write_leaves_the_earlier_file_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    dataset = FedDreamDataset(3, tmp_path)
    dataset.add(0, *batch(1))

    def breaks(file: object, **arrays: object) -> None:
        file.write(b"half")  # type: ignore[attr-defined]
        raise OSError("no space left on device")

    monkeypatch.setattr(np, "savez_compressed", breaks)
    with pytest.raises(OSError, match="no space"):
        dataset.add(0, *batch(2))
    monkeypatch.undo()
    ((dreams, _),) = read_batches(tmp_path)
    assert dreams[0, 0, 0, 0] == 1


def test_same_round_again_replaces_its_file(tmp_path: Path) -> None:
    dataset = FedDreamDataset(3, tmp_path)
    dataset.add(0, *batch(1))
    dataset.add(0, *batch(2))
    assert [dreams[0, 0, 0, 0] for dreams, _ in read_batches(tmp_path)] == [2]
