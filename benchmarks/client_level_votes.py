"""What a student learns from the noised votes of 100 clients, each as a whole under epsilon 8: half a minute.

python benchmarks/client_level_votes.py

Digits, 11 images a client, no image with two clients; everybody's model, and the student's, is a linear one on pixels.
Each client votes once on 2,000 images of drawn noise. What the shares of all 100 have in noise is drawn at once, as
Gaussian noise of the variance that they and the rounding have together; all 100 are in the sum, and c of them may
reveal their shares (least survivors 100, so that 100 - c shares are the whole noise). Delta 1e-5.
"""

import numpy as np
import torch
from torch import nn

from codream_clients.data.datasets import load_digits_data
from codream_clients.learning.participant import Participant
from codream_clients.learning.settings import LearningSettings
from codream_clients.learning.training import evaluate
from codream_clients.learning.votes import learn_votes
from codream_protocols.courses.codream import ClientPrivacy, CoDream, DreamSettings
from codream_protocols.starts import start_rule

CLIENTS, IMAGES, BATCH, SEEDS, COLLUDERS = 100, 11, 2000, range(5), (1, 25)
DEVICE = torch.device("cpu")
SETTINGS = LearningSettings(
    batch_size=16, distil_epochs=60, distil_lr=0.05, weight_decay=1e-3, distil_noise=0.0, own_weight=0.0
)
DREAMS = DreamSettings(steps=0, batch=BATCH, label_by="votes", rounds=1, shape=(1, 8, 8), classes=10)


def linear(seed: int) -> nn.Module:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 10))


def main() -> None:
    course = CoDream(DREAMS, start_rule("noise"), ClientPrivacy(epsilon=8.0, delta=1e-5))
    for seed in SEEDS:
        pool, test = load_digits_data(seed)
        order = np.random.default_rng(seed).permutation(len(pool))[: CLIENTS * IMAGES].reshape(CLIENTS, IMAGES)
        clients = [
            Participant(SETTINGS, linear(seed * 1000 + n), pool.subset(own), test, n, DEVICE)
            for n, own in enumerate(order)
        ]
        alone = np.mean([client.warm_up().accuracy or 0.0 for client in clients])
        state = course.start(bytes([seed]) * 32, 0, None)
        dreams = np.array(state["dreams"])
        votes = np.sum([client.votes(dreams) for client in clients], axis=0, dtype=np.float64)
        for colluders in COLLUDERS:
            (spec,) = course.specs(CLIENTS - colluders)
            assert spec.noise is not None
            deviation = np.sqrt(CLIENTS * (spec.noise.variance + 0.25)) * spec.noise.norm / spec.noise.radius
            noised = votes + np.random.default_rng([seed, colluders]).normal(0, deviation, votes.shape)
            shares = course.publication(course.absorb(state, 0, {"votes": noised.reshape(-1)}, CLIENTS))["soft_labels"]
            student = linear(999)
            learn_votes(student, [(dreams, shares)], SETTINGS, seed=0, device=DEVICE)
            found = evaluate(student, test, DEVICE)
            print(f"seed {seed}, c = {colluders}: alone {alone:.3f}, student {found:.3f}", flush=True)


if __name__ == "__main__":
    main()
