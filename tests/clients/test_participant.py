import copy
import dataclasses

import numpy as np
import pytest
import torch

from codream_clients.data.datasets import LabelledImages, load_digits_data
from codream_clients.data.partitions import dirichlet
from codream_clients.learning.dreaming import DreamLoss, dream_gradient
from codream_clients.learning.local_work import train_epochs
from codream_clients.learning.participant import LearningSettings, Participant, Teacher
from codream_clients.learning.training import evaluate
from codream_clients.models.zoo import build
from codream_clients.privacy.ledger import BudgetExceeded
from codream_protocols.courses.contrast import contrast_values
from codream_protocols.settings import SettingsError

CPU = torch.device("cpu")
QUICK = LearningSettings(local_steps=3, warm_up_epochs=5, distil_epochs=2, local_epochs=1, window=2)
NAMES = ["cnn2", "mlp", "cnn2_wide"]


@pytest.fixture(scope="module")
def digits():
    train, test = load_digits_data(0)
    parts = dirichlet(train.labels, 3, 30, 0.5, seed=0)
    return [train.subset(part) for part in parts], test.subset(np.arange(200))


def participant(digits, client=0, settings=QUICK, **more):
    shards, test = digits
    model = build(NAMES[client], channels=1, size=8, classes=10, seed=client)
    return Participant(settings, model, shards[client], test, seed=client, device=CPU, **more)


def noise(count=32, seed=0):
    return np.random.default_rng(seed).standard_normal((count, 1, 8, 8)).astype(np.float32)


def federate(clients, rounds, steps, count):
    """Plain averaging, in the clear."""
    for client in clients:
        client.warm_up()
    for number in range(rounds):
        dreams = noise(count, seed=number)
        for _ in range(steps):
            dreams = dreams + np.mean([client.dream_update(dreams).delta for client in clients], axis=0)
        shares = [client.soft_labels(dreams) for client in clients]
        labels = sum(s.numerators for s in shares) / sum(s.denominators for s in shares)
        for client in clients:
            client.acquire(dreams, labels)
    return [client.metrics.accuracy for client in clients]


def test_a_round_of_shares_has_the_shapes_and_bounds_promised(digits):
    client = participant(digits)
    assert client.metrics is None
    assert client.warm_up().rounds == 0
    share = client.dream_update(noise())
    assert share.delta.shape == (32, 1, 8, 8)
    assert share.delta.dtype == np.float32
    assert 0 <= share.entropy <= np.log(10)
    labels = client.soft_labels(noise())
    assert labels.numerators.shape == (32, 10)
    assert labels.numerators.dtype == labels.denominators.dtype == np.float32
    assert (labels.denominators > 0).all()
    assert (labels.denominators <= 1).all()
    metrics = client.acquire(noise(), (labels.numerators / labels.denominators).astype(np.float32))
    assert metrics.rounds == 1
    assert metrics.distil_loss > 0
    assert metrics.accuracy is not None and 0 <= metrics.accuracy <= 1
    assert metrics is client.metrics


def test_logits_are_clipped(digits):
    client = participant(digits, settings=dataclasses.replace(QUICK, logit_clip=0.05, class_aware=False))
    client.warm_up()
    assert np.abs(client.soft_labels(noise()).numerators).max() == pytest.approx(0.05)


def test_the_gradient_way_shares_the_gradient_of_the_sum_over_dreams(digits):
    client = participant(digits, settings=dataclasses.replace(QUICK, way="gradient"))
    client.warm_up()
    seen = client._train.class_counts > 0
    gradient, entropy = dream_gradient(client.model, noise(), QUICK.loss, seen=seen)
    share = client.dream_update(noise())
    assert np.allclose(share.delta, 32 * gradient, rtol=1e-5, atol=1e-6)
    assert share.entropy == entropy


def test_runs_repeat_from_their_seeds(digits):
    one, two = (federate([participant(digits, i) for i in range(2)], 1, 2, 16) for _ in range(2))
    assert one == two


def test_the_window_slides(digits):
    client = participant(digits)
    client.warm_up()
    for number in range(3):
        client.acquire(noise(8, number), np.zeros((8, 10), np.float32))
    assert [np.array_equal(kept[0], noise(8, n)) for kept, n in zip(client._window, (1, 2), strict=True)] == [
        True,
        True,
    ]


def test_training_and_counts_can_be_replaced_for_privacy(digits):
    calls = []
    noised = np.linspace(0.5, 5, 10, dtype=np.float32)
    client = participant(
        digits,
        settings=dataclasses.replace(QUICK, own_weight=0.0),
        local_training=lambda model, data, epochs, seed: calls.append((epochs, seed)),
        class_counts=noised,
    )
    client.warm_up()
    expected = (noised + QUICK.prior) / (QUICK.max_count + QUICK.prior)
    assert np.allclose(client.soft_labels(noise()).denominators, expected)
    client.acquire(noise(8), np.zeros((8, 10), np.float32))
    assert [epochs for epochs, _ in calls] == [QUICK.warm_up_epochs, QUICK.local_epochs]
    assert len({seed for _, seed in calls}) == 2


def test_without_test_images_there_is_no_accuracy(digits):
    shards, _ = digits
    model = build("mlp", channels=1, size=8, classes=10, seed=0)
    metrics = Participant(QUICK, model, shards[0], None, 0, CPU).warm_up()
    assert metrics.accuracy is None
    assert metrics.train_accuracy is not None and 0 <= metrics.train_accuracy <= 1


@pytest.mark.parametrize(
    "wrong",
    [
        {"way": "weights"},
        {"local_steps": 0},
        {"dream_lr": 0.0},
        {"logit_clip": -1.0},
        {"momentum": 1.0},
        {"lr": float("nan")},
        {"batch_size": 1},
        {"max_count": 0},
        {"prior": 0.0},
        {"temperature": 0.0},
        {"window": 0},
        {"warm_up_epochs": -1},
        {"distil_every": 0},
        {"training_rounds": -1},
        {"schedule": "linear"},
        {"distil_schedule": "steps"},
        {"teacher": "best"},
    ],
)
def test_settings_out_of_range_are_refused_by_name(wrong):
    with pytest.raises(SettingsError, match=next(iter(wrong))):
        LearningSettings(**wrong)


def trained(model, data, seed, settings, test, rounds=2):
    """Accuracy after as many epochs on `data` alone as a client of a federation has in all."""
    train_epochs(model, data, settings, epochs=settings.epochs_in_all(rounds), seed=seed, device=CPU)
    return evaluate(model, test, CPU)


def test_dreams_beat_training_alone_on_skewed_digits(digits):
    shards, test = digits
    settings = LearningSettings(warm_up_epochs=40, distil_epochs=15, local_epochs=5)
    together = np.mean(federate([participant(digits, i, settings) for i in range(3)], 2, 6, 96))
    models = [build(name, channels=1, size=8, classes=10, seed=i) for i, name in enumerate(NAMES)]
    alone = np.mean([trained(*one, settings, test) for one in zip(models, shards, range(3), strict=True)])
    assert together > alone + 0.1


def test_the_papers_way_can_be_asked_for(digits):
    settings = dataclasses.replace(QUICK, balanced=False, class_aware=False, loss=DreamLoss(alpha_target=0.0))
    client = participant(digits, settings=settings)
    client.warm_up()
    assert (client.soft_labels(noise()).denominators == 1).all()


def test_the_teacher_of_the_warm_up_stays_as_it_was(digits):
    kept, moving = (
        participant(digits, settings=dataclasses.replace(QUICK, teacher=teacher)) for teacher in ("warm-up", "current")
    )
    for client in (kept, moving):
        client.warm_up()
    before = kept.soft_labels(noise()).numerators
    assert np.array_equal(before, moving.soft_labels(noise()).numerators)
    for client in (kept, moving):
        client.acquire(noise(), np.zeros((32, 10), dtype=np.float32))
    assert np.array_equal(kept.soft_labels(noise()).numerators, before)
    assert not np.array_equal(moving.soft_labels(noise()).numerators, before)


def test_the_trained_teacher_is_what_its_newest_training_left_and_not_what_distillation_made_of_it(digits):
    """It goes on labelling while the model learns from dreams, and changes where the model trains on own images."""
    settings = dataclasses.replace(QUICK, own_weight=0.0, teacher="trained", training_rounds=1)
    client, told, kept = participant(digits, settings=settings), [], []
    client.warm_up()
    for _ in range(3):
        told.append(client.soft_labels(noise()).numerators)
        client.acquire(noise(), np.zeros((32, 10), dtype=np.float32))
        kept.append(len(client._window))
    assert kept == [0, 1, 2]  # what the teacher said before its training is forgotten
    assert not np.array_equal(told[0], told[1])  # round 1 trains
    assert np.array_equal(told[1], told[2])  # round 2 distils alone, and changes the model
    control = participant(digits, settings=dataclasses.replace(settings, teacher="current"))
    control.warm_up()
    control.acquire(noise(), np.zeros((32, 10), dtype=np.float32))
    before = control.soft_labels(noise()).numerators
    control.acquire(noise(), np.zeros((32, 10), dtype=np.float32))
    assert not np.array_equal(control.soft_labels(noise()).numerators, before)


@pytest.mark.parametrize("teacher", ["current", "trained"])
@pytest.mark.parametrize("fails", ["distillation", "training", "judge"])
def test_a_round_that_fails_in_whatever_way_leaves_the_model_and_what_teaches_as_they_were(
    digits, monkeypatch, fails, teacher
):
    client = participant(digits, settings=dataclasses.replace(QUICK, teacher=teacher))
    client.warm_up()
    before, told = copy.deepcopy(client.model.state_dict()), client.soft_labels(noise()).numerators

    def failing(*given, **how):
        client.model.train()
        with torch.no_grad():
            for weight in client.model.parameters():
                weight.zero_()
        raise MemoryError

    given = {}
    if fails == "distillation":
        given["distillation"] = failing
    elif fails == "training":
        client._local_training = failing
    else:
        monkeypatch.setattr(client, "measure", failing)
    with pytest.raises(MemoryError):
        client.acquire(noise(), np.zeros((32, 10), np.float32), **given)
    assert all(torch.equal(before[name], kept) for name, kept in client.model.state_dict().items())
    assert not client.model.training and np.array_equal(client.soft_labels(noise()).numerators, told)
    assert len(client._window) == 1


def test_a_training_that_may_not_be_leaves_what_the_dreams_have_taught(digits):
    def refused(model, data, epochs, seed):
        if epochs == QUICK.local_epochs:
            raise BudgetExceeded("epsilon 3.21 is spent")

    client = participant(digits, settings=dataclasses.replace(QUICK, own_weight=0.0), local_training=refused)
    client.warm_up()
    before = client.soft_labels(noise()).numerators
    with pytest.raises(BudgetExceeded):
        client.acquire(noise(), np.zeros((32, 10), np.float32))
    assert not np.array_equal(client.soft_labels(noise()).numerators, before)


def test_statistics_of_one_image_more_than_a_batch_are_measured(digits):
    """The last batch held one image, at which batch norm raised, and the model stayed half-way."""
    images = np.random.default_rng(0).standard_normal((257, 1, 8, 8)).astype(np.float32)
    data = LabelledImages(images, np.arange(257) % 10, 10)
    settings = dataclasses.replace(QUICK, own_statistics=True, local_epochs=0)
    client = Participant(settings, build("mlp", channels=1, size=8, classes=10, seed=0), data, None, 0, CPU)
    client.warm_up()
    assert client.acquire(noise(), np.zeros((32, 10), np.float32)).rounds == 1


def test_replaced_local_training_is_not_bypassed_by_statistics_of_own_images(digits):
    settings = dataclasses.replace(QUICK, own_weight=0.0, own_statistics=True)
    with pytest.raises(SettingsError, match="own_statistics is true"):
        participant(digits, settings=settings, local_training=lambda *given: None)


def test_brightness_and_contrast_are_reckoned_once(digits, monkeypatch):
    images = np.random.default_rng(0).standard_normal((600, 1, 8, 8)).astype(np.float32)
    data = LabelledImages(images, np.arange(600) % 10, 10)
    client = Participant(QUICK, build("mlp", channels=1, size=8, classes=10, seed=0), data, None, 0, CPU)
    told = client.contrast(0.5)
    wanted = contrast_values(images, 0.5)
    assert told.keys() == wanted.keys() and all(np.array_equal(told[name], wanted[name]) for name in told)
    assert client.contrast(0.25)["weight"] != told["weight"]
    told = client.contrast(0.5)
    monkeypatch.setattr("codream_clients.learning.participant.contrast_values", pytest.fail)
    assert client.contrast(0.5) is told


@pytest.mark.parametrize("since", [0, 2])
def test_what_was_labelled_before_the_teacher_was_trained_is_not_recalled(digits, since):
    client = participant(digits, settings=dataclasses.replace(QUICK, teacher="trained"))
    teacher = build(NAMES[0], channels=1, size=8, classes=10, seed=7)
    client.begin(3, Teacher(teacher, since))
    assert client.teacher is teacher
    for number in (1, 2, 3):
        client.recall(noise(8, number), np.zeros((8, 10), np.float32), number)
    expected = [number for number in (1, 2, 3) if number > since][-QUICK.window :]
    assert [np.array_equal(kept[0], noise(8, n)) for kept, n in zip(client._window, expected, strict=True)] == [
        True for _ in expected
    ]


def test_rounds_that_a_ledger_has_counted_count_for_those_that_distil(digits):
    """`training_rounds` is what is left; which rounds distil, and by which seeds, is the federation's count."""
    settings = dataclasses.replace(QUICK, own_weight=0.0, distil_every=2, training_rounds=1)
    trained = []
    client = participant(digits, settings=settings, local_training=lambda *given: trained.append(given))
    client.begin(1)
    client.recall(noise(8), np.zeros((8, 10), np.float32), 1)
    losses = [client.acquire(noise(8), np.zeros((8, 10), np.float32)).distil_loss for _ in range(3)]
    assert [loss > 0 for loss in losses] == [True, False, True] and len(trained) == 1


def test_rounds_that_distil_or_train_are_those_that_the_settings_name_and_references_take_as_many_epochs(digits):
    settings = LearningSettings(
        warm_up_epochs=3, distil_epochs=2, local_epochs=1, distil_every=2, training_rounds=3, own_weight=0.0
    )
    assert [settings.epochs_in(round) for round in (1, 2, 3, 4, 5)] == [1, 3, 1, 2, 0]
    assert settings.epochs_in_all(5) == 3 + 7
    assert LearningSettings(local_epochs=0, distil_epochs=4).epochs_in(1) == 4
    trained = []
    client: Participant = participant(
        digits, settings=settings, local_training=lambda model, data, epochs, seed: trained.append(client._rounds)
    )
    client.warm_up()
    losses = [client.acquire(noise(), np.zeros((32, 10), np.float32)).distil_loss for _ in range(5)]
    assert trained == [0, 1, 2, 3]
    assert [loss > 0 for loss in losses] == [False, True, False, True, False]


def test_own_images_and_noise_change_what_is_distilled_and_repeat_from_the_seed(digits):
    found = []
    plain = dataclasses.replace(QUICK, local_epochs=0, own_weight=0.0, distil_noise=0.0)
    for changes in ({}, {"distil_noise": 0.3}, {"own_weight": 1.0}, {"own_weight": 1.0}):
        client = participant(digits, settings=dataclasses.replace(plain, **changes))
        client.warm_up()
        client.acquire(noise(), np.zeros((32, 10), dtype=np.float32))
        found.append(client.soft_labels(noise()).numerators)
    assert not np.array_equal(found[0], found[1]) and not np.array_equal(found[0], found[2])
    assert np.array_equal(found[2], found[3])


def test_replaced_local_training_is_not_bypassed_by_own_images(digits):
    """Differential privacy would be worth nothing if distillation saw the own images beside it."""
    settings = dataclasses.replace(QUICK, own_weight=1.0)
    with pytest.raises(SettingsError, match="own_weight"):
        participant(digits, settings=settings, local_training=lambda *given: None)


@pytest.mark.exhaustive
def test_sites_of_unequal_size_keep_what_they_had():
    """Three sites of two classes, 28 x 28, at the defaults. Control: uncut, the distillation ruins the first and last.

    What it leaves is measured on own images, before they are trained on again.
    """
    settings = LearningSettings(local_epochs=0)
    torch.set_num_threads(1)
    sites = [(60, 540), (160, 140), (40, 1500)]
    draws = np.random.default_rng(1)
    clients = []
    for number, (counts, name) in enumerate(zip(sites, ["cnn2", "mlp", "cnn2"], strict=True)):
        labels = np.repeat([0, 1], counts).astype(np.int64)
        brightness = 0.4 * (2 * labels - 1) + draws.normal(0, 0.4, len(labels)) - 0.3
        images = draws.normal(0, 0.5, (len(labels), 1, 28, 28)) + brightness[:, None, None, None]
        data = LabelledImages(images.astype(np.float32), labels, 2)
        model = build(name, channels=1, size=28, classes=2, seed=1)
        clients.append(Participant(settings, model, data, None, 1000 + number, CPU))
    alone = [client.warm_up().train_accuracy or 0.0 for client in clients]
    dreams = np.random.default_rng(77).standard_normal((128, 1, 28, 28)).astype(np.float32)
    for _ in range(10):
        moved = np.mean([np.clip(client.dream_update(dreams).delta, -1, 1) for client in clients], axis=0)
        dreams = (dreams + moved).astype(np.float32)
    shares = [client.soft_labels(dreams) for client in clients]
    taught = sum(share.numerators for share in shares) / sum(share.denominators for share in shares)
    for uncut in (False, True):
        left = []
        for client in clients:
            own = copy.deepcopy(client)
            own.settings = dataclasses.replace(own.settings, distil_clip=0.0 if uncut else own.settings.distil_clip)
            left.append(own.acquire(dreams, np.asarray(taught, dtype=np.float32)).train_accuracy or 0.0)
        worst = min(now / before for now, before in zip(left, alone, strict=True))
        assert worst < 0.7 if uncut else worst > 0.8, left  # 0.89 to 1.0 by the machine
