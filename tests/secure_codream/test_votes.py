"""Votes in place of logits: what one client can move, what is learnt from noised sums, and what is said of it."""

import math

import numpy as np
import pytest
import torch

from codream_clients.data.datasets import load_digits_data
from codream_clients.learning.settings import LearningSettings
from codream_clients.learning.votes import learn_votes, votes_of
from codream_clients.models.zoo import build
from codream_protocols.courses.codream import ClientPrivacy, CoDream, DreamSettings
from codream_protocols.courses.labels import MOST_SHARE, VOTES
from codream_protocols.distributed_noise import noise_multiplier
from codream_protocols.settings import SettingsError
from codream_protocols.starts import start_rule
from codream_protocols.zcdp import epsilon_of
from secure_codream.api.local import run_local

VOTING = DreamSettings(steps=0, batch=40, label_by="votes", rounds=1, shape=(1, 8, 8), classes=10)
PRIVACY = ClientPrivacy(epsilon=8.0, delta=1e-5)
NOISE = start_rule("noise")

pytestmark = pytest.mark.usefixtures("one_thread")


def test_a_client_moves_the_sum_by_the_root_of_its_votes_and_the_noise_is_for_that() -> None:
    course = CoDream(VOTING, NOISE, PRIVACY)
    (spec,) = course.specs(honest=9)
    assert spec.task == VOTES and spec.noise is not None
    votes = votes_of(np.random.default_rng(0).standard_normal((40, 10)).astype(np.float32), None)
    assert np.linalg.norm(votes) == pytest.approx(spec.noise.norm) == pytest.approx(math.sqrt(40))
    found = noise_multiplier(spec.noise, spec.length, 9)
    assert epsilon_of(1 / (2 * found**2), 1e-5) == pytest.approx(8.0, rel=1e-2) and found >= course.noise_multiplier


def test_votes_are_for_classes_that_were_seen() -> None:
    logits = np.array([[0.0, 3.0, 1.0]], dtype=np.float32)
    assert votes_of(logits, np.array([True, False, True])).tolist() == [[0, 0, 1]]
    assert votes_of(logits, np.zeros(3, dtype=bool)).tolist() == votes_of(logits, None).tolist() == [[0, 1, 0]]


def test_shares_are_of_those_who_are_in_the_sum_and_bounded() -> None:
    course = CoDream(VOTING, NOISE, PRIVACY)
    state = course.start(bytes(32), 0, None)
    total = np.full(400, 6.0)
    total[0] = -1e9
    shares = course.publication(course.absorb(state, 0, {"votes": total}, 12))["soft_labels"]
    assert shares.shape == (40, 10) and shares[0, 0] == -MOST_SHARE and shares[1, 1] == 0.5


@pytest.mark.parametrize(
    ("privacy", "steps", "label_by", "words"),
    [
        ({"logit_norm": 1.0}, 0, "votes", "votes have one norm"),
        ({}, 0, "logits", "logit_norm is not given"),
        ({}, 2, "votes", "update_norm is not given"),
        ({"update_norm": 1.5}, 0, "votes", "update_norm is 1.5 with steps = 0; none is allowed"),
    ],
)
def test_a_bound_that_is_missing_or_of_no_effect_is_refused(privacy, steps, label_by, words) -> None:  # type: ignore[no-untyped-def]
    settings = DreamSettings(steps=steps, label_by=label_by, rounds=1, shape=(1, 8, 8), classes=10)
    with pytest.raises(SettingsError, match=words):
        CoDream(settings, NOISE, ClientPrivacy(epsilon=8.0, delta=1e-5, **privacy))


def test_noise_averages_out_over_images() -> None:
    """A linear model learns from shares whose noise is as large as they are."""
    random = np.random.default_rng(0)
    images = random.standard_normal((4000, 1, 8, 8)).astype(np.float32)
    truth = random.standard_normal((64, 3)).astype(np.float32)
    shares = votes_of(images.reshape(-1, 64) @ truth, None) + random.normal(0, 1, (4000, 3)).astype(np.float32)
    model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(64, 3))
    settings = LearningSettings(distil_epochs=4, distil_lr=0.05)
    learn_votes(model, [(images, shares)], settings, seed=0, device=torch.device("cpu"))
    fresh = random.standard_normal((1000, 64)).astype(np.float32)
    said = model(torch.from_numpy(fresh)).detach().numpy().argmax(1)
    assert (said == (fresh @ truth).argmax(1)).mean() > 0.8


def test_a_federation_votes_and_states_what_it_cost() -> None:
    train, test = load_digits_data(0)
    shards = [train.subset(np.arange(n * 40, n * 40 + 40)) for n in range(4)]
    models = [build("mlp", channels=1, size=8, classes=10, seed=n) for n in range(4)]
    run = run_local(
        models,
        shards,
        test,
        classes=10,
        seed=0,
        device="cpu",
        federation={"rounds": 1},
        dreams={"steps": 0, "batch": 32, "label_by": "votes"},
        learning={"warm_up_epochs": 2, "distil_epochs": 1, "local_epochs": 0},
        aggregation={"colluders": 1},
        client_privacy={"epsilon": 8.0, "delta": 1e-5},
    )
    stated = run.client_privacy
    assert stated is not None and stated.vote_norm == math.sqrt(32) and stated.logit_norm is None
    assert stated.epsilon_spent == pytest.approx(8.0, rel=1e-2) and stated.colluders == 1
    assert run.dreams[0][1].shape == (32, 10) and run.dreams[0][1].min() < 0  # noised shares
