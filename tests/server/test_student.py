"""The adaptive student: its entropy rises where it pushes, and it learns from dreams alone."""

from __future__ import annotations

import numpy as np
import pytest

from codream_server.feddream import FedDreamDataset

torch = pytest.importorskip("torch")
from codream_server.student import Student  # noqa: E402 - needs torch


def make(seed: int = 0, **settings: float) -> Student:
    torch.manual_seed(seed)
    model = torch.nn.Sequential(
        torch.nn.Flatten(), torch.nn.Linear(16, 32), torch.nn.BatchNorm1d(32), torch.nn.ReLU(), torch.nn.Linear(32, 4)
    )
    return Student(model, **settings)


def entropy(student: Student, dreams: np.ndarray) -> np.ndarray:
    student.model.eval()
    with torch.no_grad():
        log_probabilities = torch.log_softmax(student.model(torch.from_numpy(dreams)), dim=1)
    return -(log_probabilities.exp() * log_probabilities).sum(1).numpy()


def batches(count: int = 1, size: int = 64) -> FedDreamDataset:
    """Dreams whose class is written on them, with confident soft labels."""
    rng, dataset = np.random.default_rng(3), FedDreamDataset(10)
    for number in range(count):
        classes = rng.integers(0, 4, size)
        dreams = rng.standard_normal((size, 1, 4, 4)).astype(np.float32) * 0.3
        dreams[np.arange(size), 0, classes, :] += 2
        dataset.add(number, dreams, (8.0 * np.eye(4)[classes] - 2).astype(np.float32))
    return dataset


def test_student_learns_from_the_window_alone() -> None:
    student, dataset = make(epochs=20), batches()
    dreams, labels = dataset.batches[0]

    def accuracy() -> float:
        with torch.no_grad():
            return float((student.model(torch.from_numpy(dreams)).argmax(1).numpy() == labels.argmax(1)).mean())

    before = accuracy()
    student.learn(dataset)
    assert accuracy() > 0.95 > before
    assert not student.model.training


def test_entropy_rises_after_a_push() -> None:
    student, dataset = make(epochs=20), batches()
    student.learn(dataset)
    dreams, _ = dataset.batches[0]
    kept = dreams.copy()
    before, pushed = entropy(student, dreams), student.push(dreams, 1.0)
    after = entropy(student, pushed)
    assert after.mean() > before.mean() and (after >= before - 1e-5).mean() > 0.95
    further = entropy(student, student.push(pushed, 1.0))
    assert further.mean() > after.mean()
    assert np.array_equal(dreams, kept) and pushed.dtype == np.float32 and pushed.shape == dreams.shape


@pytest.mark.parametrize("weight", [0.5, 2.0])
def test_push_moves_no_coordinate_further_than_it_may(weight: float) -> None:
    student, dataset = make(push_lr=0.1), batches()
    dreams, _ = dataset.batches[0]
    moved = np.abs(student.push(dreams, weight) - dreams).reshape(len(dreams), -1).max(1)
    assert moved == pytest.approx(0.1 * weight, rel=1e-3)


def test_student_is_deterministic_from_its_seed() -> None:
    weights = []
    for _ in range(2):
        student = make(epochs=2)
        student.learn(batches())
        weights.append(student.model[1].weight.detach().numpy().copy())
    assert np.array_equal(*weights)


def test_last_single_dream_of_an_epoch_is_left_out() -> None:
    """Batch norm cannot normalise one image; 65 dreams make a batch of 64 and one of 1."""
    make(epochs=1).learn(batches(size=65))
