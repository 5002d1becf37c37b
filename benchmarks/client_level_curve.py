"""From how many clients on is client-level privacy of use? Error and accuracy of noised sums, 10 to 10,000 clients.

python benchmarks/client_level_curve.py            # both tables, about five minutes on one core
python benchmarks/client_level_curve.py --no-students

Forty small clients (digits, 60 images each, two kinds of model) make real dream updates; a federation of n is n clients
drawn from them with replacement. What n clients would add in noise is drawn at once, as Gaussian noise of the variance
that n shares and the rounding have together; with --check n, once through the real encoding of each client. All n take
part; noise is made for 80 % survivors of whom 5 % of n collude, at delta 1e-5, for 4 rounds of 10 updates and labels.
"""

from __future__ import annotations

import argparse
import time
from dataclasses import dataclass, replace

import numpy as np
import torch

from codream_clients.data.datasets import LabelledImages, load_digits_data
from codream_clients.learning.distillation import distil
from codream_clients.learning.participant import LearningSettings, Participant
from codream_clients.learning.training import evaluate
from codream_clients.models.zoo import build
from codream_protocols.distributed_noise import Noise, decode_sum, encode, make_noise, multiplier_for
from codream_protocols.rotation import padded_length, step_signs

CLIENTS, TEACHERS, IMAGES, BATCH, CLASSES = 40, 8, 60, 128, 10
ROUNDS, UPDATES, DELTA = 4, 10, 1e-5
COUNTS, EPSILONS = (10, 30, 100, 300, 1_000, 3_000, 10_000), (1.0, 2.0, 4.0, 8.0)
STUDENTS = (  # clients, epsilon, updates a round
    (100, 8.0, 2),
    (300, 8.0, 0),
    (300, 8.0, 2),
    (300, 8.0, 10),
    (1_000, 8.0, 2),
    (1_000, 8.0, 10),
    (3_000, 8.0, 10),
    (1_000, 2.0, 2),
    (3_000, 2.0, 2),
    (3_000, 2.0, 10),
    (10_000, 1.0, 2),
    (10_000, 1.0, 10),
)
DEVICE = torch.device("cpu")
SETTINGS = LearningSettings(warm_up_epochs=40)


@dataclass(frozen=True)
class Release:
    """How sums over n clients are noised: bound `norm`, at this epsilon for a run of so many updates a round."""

    clients: int
    epsilon: float
    norm: float
    updates: int = UPDATES

    def noise(self, length: int) -> Noise:
        """The shares that a plan would ask for."""
        multiplier = multiplier_for(self.epsilon, DELTA, ROUNDS * (self.updates + 1))
        honest = max(2, round(0.8 * self.clients) - round(0.05 * self.clients))
        return make_noise(self.norm, length, multiplier, honest)

    def mean(self, vectors: np.ndarray, counts: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        """The noised mean of the clipped vectors (kinds, N), of which there are `counts` (kinds,) each."""
        noise = self.noise(vectors.shape[1])
        deviation = np.sqrt(self.clients * (noise.variance + 0.25)) * self.norm / noise.radius
        total = counts @ clipped(vectors, self.norm) + rng.normal(scale=deviation, size=vectors.shape[1])
        return np.asarray(total / self.clients)

    def mean_through_the_ring(self, vectors: np.ndarray, counts: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        """The same, each client's vector encoded with its own exact noise."""
        length = vectors.shape[1]
        noise, signs = self.noise(length), step_signs(bytes(32), 0, length)
        total = np.zeros(padded_length(length), dtype=np.uint32)
        for vector, count in zip(vectors, counts, strict=True):
            for _ in range(count):
                total += encode(vector, noise, signs, modulus_bits=32, rounding=rng)
        return decode_sum(total, noise, signs, length, modulus_bits=32) / self.clients


def clipped(vectors: np.ndarray, norm: float) -> np.ndarray:
    """Each row within the Euclidean norm."""
    return np.asarray(vectors * np.minimum(1, norm / np.linalg.norm(vectors, axis=1, keepdims=True)))


def make_clients() -> tuple[list[Participant], LabelledImages]:
    """Forty warmed-up clients, mlp and cnn2 in turn, with images drawn from the digits, and the test images."""
    pool, test = load_digits_data(0)
    rng = np.random.default_rng(0)
    clients = []
    for number in range(CLIENTS):
        chosen = rng.choice(len(pool.labels), IMAGES, replace=False)
        model = build(("mlp", "cnn2")[number % 2], channels=1, size=8, classes=CLASSES, seed=number)
        own = LabelledImages(pool.images[chosen], pool.labels[chosen], CLASSES)
        clients.append(Participant(SETTINGS, model, own, test, number, DEVICE))
        clients[-1].warm_up()
    return clients, test


def updates(clients: list[Participant], dreams: np.ndarray) -> np.ndarray:
    """Each client's update of the dreams, within [-1, 1] a coordinate: shape (clients, coordinates)."""
    return np.array([np.clip(one.dream_update(dreams).delta, -1, 1).reshape(-1) for one in clients], dtype=np.float64)


def fresh_dreams(seed: int) -> np.ndarray:
    return np.random.default_rng([7, seed]).standard_normal((BATCH, 1, 8, 8), dtype=np.float32)


def error_table(clients: list[Participant], check: int) -> float:
    """Print the relative error of the mean update; returns the norm that updates are clipped to."""
    rng = np.random.default_rng(1)
    dreams, states = fresh_dreams(0), []
    for step in range(UPDATES):
        found = updates(clients if step in (0, 4, 9) else clients[:TEACHERS], dreams)
        if len(found) == CLIENTS:
            states.append(found)
        dreams = dreams + found.mean(axis=0).reshape(dreams.shape).astype(np.float32)
    norms = [np.linalg.norm(found, axis=1) for found in states]
    norm = float(np.median(np.concatenate(norms)))
    agreement = np.mean(
        [np.linalg.norm(found.mean(axis=0)) / np.median(one) for found, one in zip(states, norms, strict=True)]
    )
    print(
        f"updates: {states[0].shape[1]} coordinates, median norm {norm:.1f}, norm of the mean over it {agreement:.2f}"
    )
    print("\nrelative error of the mean update (noise, clipping and sampling of clients)\n")
    print("| clients | without noise | " + " | ".join(f"epsilon {epsilon:g}" for epsilon in EPSILONS) + " |")
    print("|---|---|" + "---|" * len(EPSILONS))
    for count in COUNTS:
        cells: list[list[float]] = [[] for _ in range(1 + len(EPSILONS))]
        for found in states:
            truth = found.mean(axis=0)
            counts = rng.multinomial(count, np.full(CLIENTS, 1 / CLIENTS))
            means = [counts @ found / count]
            means += [Release(count, epsilon, norm).mean(found, counts, rng) for epsilon in EPSILONS]
            for cell, mean in zip(cells, means, strict=True):
                cell.append(float(np.linalg.norm(mean - truth) / np.linalg.norm(truth)))
        print(f"| {count} | " + " | ".join(f"{np.mean(cell):.2f}" for cell in cells) + " |", flush=True)
    if check:
        release = Release(check, 4.0, norm)
        counts = rng.multinomial(check, np.full(CLIENTS, 1 / CLIENTS))
        truth = states[0].mean(axis=0)
        drawn, real = (
            np.linalg.norm(how(states[0], counts, rng) - truth) / np.linalg.norm(truth)
            for how in (release.mean, release.mean_through_the_ring)
        )
        print(f"\ncheck, {check} clients at epsilon 4: error {drawn:.3f} as drawn, {real:.3f} through the ring")
    return norm


def labels_of(mean: np.ndarray) -> np.ndarray:
    """Soft labels (B, K), as the server makes them, from the mean of the clients' vectors."""
    numerators = mean[: BATCH * CLASSES].reshape(BATCH, CLASSES) * SETTINGS.logit_clip
    quotients = numerators / np.maximum(mean[BATCH * CLASSES :], 1e-6)
    return np.asarray(np.clip(quotients, -SETTINGS.logit_clip, SETTINGS.logit_clip), dtype=np.float32)


def student(teachers: list[Participant], test: LabelledImages, count: int, release: Release | None) -> float:
    """Test accuracy of a student that learns from dreams of `count` updates and their labels, noised or not, alone."""
    rng = np.random.default_rng(2)
    batches = []
    for number in range(ROUNDS):
        dreams = fresh_dreams(number)
        for _ in range(count):
            found = updates(teachers, dreams)
            if release is None:
                mean = found.mean(axis=0)
            else:
                counts = rng.multinomial(release.clients, np.full(len(teachers), 1 / len(teachers)))
                mean = np.clip(release.mean(found, counts, rng), -1, 1)
            dreams = dreams + mean.reshape(dreams.shape).astype(np.float32)
        shares = [one.soft_labels(dreams) for one in teachers]
        told = np.array(
            [np.r_[one.numerators.reshape(-1) / SETTINGS.logit_clip, one.denominators] for one in shares],
            dtype=np.float64,
        )
        if release is None:
            labels = labels_of(told.mean(axis=0))
        else:
            counts = rng.multinomial(release.clients, np.full(len(teachers), 1 / len(teachers)))
            labels = labels_of(replace(release, norm=1.0).mean(told, counts, rng))
        batches.append((dreams, labels))
    model = build("cnn2", channels=1, size=8, classes=CLASSES, seed=99)
    distil(model, batches, SETTINGS, seed=0, device=DEVICE, epochs=60, noise=SETTINGS.distil_noise)
    return evaluate(model, test, DEVICE)


def student_table(clients: list[Participant], test: LabelledImages, norm: float) -> None:
    """Print a student's accuracy for a few n and epsilon, and what the clients reach alone."""
    teachers = clients[:TEACHERS]
    alone = [float(one.metrics.accuracy or 0.0) for one in teachers if one.metrics is not None]
    print(f"\nclients alone: {np.mean(alone):.3f} (best {max(alone):.3f})\n")
    print("| clients | epsilon | updates a round | student on dreams alone |")
    print("|---|---|---|---|")
    for steps in (0, 2, UPDATES):
        print(f"| any | none | {steps} | {student(teachers, test, steps, None):.3f} |", flush=True)
    for count, epsilon, steps in STUDENTS:
        accuracy = student(teachers, test, steps, Release(count, epsilon, norm, steps))
        print(f"| {count} | {epsilon:g} | {steps} | {accuracy:.3f} |", flush=True)


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--no-students", action="store_true", help="only the error of the mean")
    parser.add_argument("--check", type=int, default=100, help="clients of the check through the ring; 0 leaves it out")
    options = parser.parse_args()
    torch.set_num_threads(1)
    started = time.perf_counter()
    clients, test = make_clients()
    norm = error_table(clients, options.check)
    if not options.no_students:
        student_table(clients, test, norm)
    print(f"\n{time.perf_counter() - started:.0f} s")


if __name__ == "__main__":
    main()
