"""Training, dreaming and labelling where there is a CUDA device; the masks have `test_device_masks`."""

from __future__ import annotations

import dataclasses
import secrets
from typing import Any

import numpy as np
import pytest
import torch

from codream_clients.data.datasets import LabelledImages, load_digits_data
from codream_clients.dream_learner import DreamLearner
from codream_clients.learning.participant import LearningSettings, Participant
from codream_clients.masking.device import DeviceMasks, OnDevice, why_not
from codream_clients.models.zoo import build
from codream_protocols.course import Task
from codream_protocols.specs import Block, VectorSpec
from secure_codream.simulation.wire import Federation

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device; this machine has none")

QUICK = LearningSettings(local_steps=3, warm_up_epochs=5, distil_epochs=2, local_epochs=1, window=2)
LENGTH = 16 * 64
SPEC = VectorSpec(
    "update",
    (Block("dreams", LENGTH, 0.5), Block("weight", 1, 1.0), Block("entropy", 1, 3.0), Block("clipped", 1, 1.0)),
)


@pytest.fixture(scope="module")
def images() -> tuple[LabelledImages, LabelledImages]:
    train, test = load_digits_data(0)
    return train.subset(np.arange(200)), test.subset(np.arange(200))


def participant(images: tuple[LabelledImages, LabelledImages], device: str, **settings: Any) -> Participant:
    model = build("cnn2", channels=1, size=8, classes=10, seed=0)
    chosen = dataclasses.replace(QUICK, **settings)
    return Participant(chosen, model, *images, seed=0, device=torch.device(device))


def noise() -> np.ndarray:
    return np.random.default_rng(0).standard_normal((16, 1, 8, 8)).astype(np.float32)


def test_a_client_trains_dreams_labels_and_learns_on_cuda(images: tuple[LabelledImages, LabelledImages]) -> None:
    client = participant(images, "cuda")
    assert (client.warm_up().accuracy or 0) > 0.3
    assert all(tensor.is_cuda for tensor in client.model.state_dict().values())
    share, labels = client.dream_update(noise()), client.soft_labels(noise())
    assert share.moved.is_cuda and np.isfinite(share.delta).all() and np.abs(share.delta).max() > 0
    assert labels.numerators.shape == (16, 10) and np.isfinite(labels.numerators).all()
    metrics = client.acquire(noise(), (labels.numerators / labels.denominators).astype(np.float32))
    assert np.isfinite(metrics.distil_loss) and (metrics.accuracy or 0) > 0.3


@pytest.mark.parametrize("way", ["update", "gradient"])
def test_dreams_and_labels_are_the_processors_but_for_rounding(
    images: tuple[LabelledImages, LabelledImages], way: Any
) -> None:
    here, there = (participant(images, device, way=way, local_steps=1) for device in ("cpu", "cuda"))
    for client in (here, there):
        client.begin()
    assert np.allclose(here.soft_labels(noise()).numerators, there.soft_labels(noise()).numerators, atol=1e-2)
    one, two = here.dream_update(noise()), there.dream_update(noise())
    assert two.entropy == pytest.approx(one.entropy, abs=1e-3)
    assert np.corrcoef(one.delta.ravel(), two.delta.ravel())[0, 1] > 0.99


def test_an_update_is_masked_on_the_device_that_it_was_dreamt_on(images: tuple[LabelledImages, LabelledImages]) -> None:
    cuda, said = torch.device("cuda"), list[str]()
    assert why_not(cuda, "chacha20") is None
    learner = DreamLearner(participant(images, "cuda"), hand_over=OnDevice)
    values = learner.compute(Task("update", {"dreams": noise()}), SPEC)
    assert isinstance(values["dreams"], OnDevice) and values["dreams"].tensor.is_cuda
    plan = Federation(3, specs=(SPEC,), suite="chacha20").plan
    assert DeviceMasks(cuda, said.append).ready(plan, 0, values, secrets.token_bytes) is not None, said
