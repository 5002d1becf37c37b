import sys
import warnings

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from codream_clients.data.datasets import LabelledImages
from codream_clients.learning.local_work import train_epochs
from codream_clients.learning.settings import LearningSettings
from codream_clients.learning.training import (
    ConvergenceWarning,
    Descent,
    TrainingError,
    balanced_cross_entropy,
    convergence_warnings_to,
    evaluate,
    predict_logits,
    rate_factor,
    shuffled_batches,
)
from codream_clients.models.zoo import build

CPU = torch.device("cpu")


def train(trained, data, *, epochs, seed, class_counts=None, **settings):
    sgd = LearningSettings(**{"batch_size": 8, "lr": 0.05, "momentum": 0.9, "weight_decay": 0.0} | settings)
    train_epochs(trained, data, sgd, epochs=epochs, seed=seed, device=CPU, class_counts=class_counts)


def easy_data(count=30, classes=3):
    """Images of one grey level each: class c at level c - 1, with a little noise."""
    labels = np.arange(count, dtype=np.int64) % classes
    noise = np.random.default_rng(0).normal(0, 0.1, (count, 1, 8, 8))
    images = noise + (labels - 1.0)[:, None, None, None]
    images[:, :, :4] += labels[:, None, None, None]  # an edge, which batch norm does not take away
    return LabelledImages(images.astype(np.float32), labels, classes)


def model(classes=3, seed=0):
    return build("cnn2", channels=1, size=8, classes=classes, seed=seed)


def weights_of(trained):
    return torch.cat([value.flatten().float() for value in trained.state_dict().values()])


def test_balanced_softmax_by_hand():
    logits = torch.tensor([[1.0, 2.0, 0.5]])
    loss = balanced_cross_entropy(logits, torch.tensor([2]), torch.tensor([3.0, 6.0, 1.0]))
    weighted = np.array([0.3 * np.e, 0.6 * np.e**2, 0.1 * np.e**0.5])
    assert loss.item() == pytest.approx(-np.log(weighted[2] / weighted.sum()), rel=1e-6)


def test_balanced_softmax_leaves_unseen_classes_out_and_pushes_nothing_down():
    logits = torch.tensor([[1.0, 50.0, 0.5]], requires_grad=True)
    loss = balanced_cross_entropy(logits, torch.tensor([0]), torch.tensor([1.0, 0.0, 1.0]))
    assert loss.item() == pytest.approx(np.log(1 + np.exp(-0.5)), rel=1e-5)
    loss.backward()
    assert logits.grad is not None
    assert logits.grad[0, 1] == 0
    assert torch.isfinite(logits.grad).all()


def test_equal_counts_make_the_balanced_softmax_the_cross_entropy():
    logits, labels = torch.randn(5, 4, generator=torch.Generator().manual_seed(0)), torch.tensor([0, 1, 2, 3, 0])
    balanced = balanced_cross_entropy(logits, labels, torch.full((4,), 7.0))
    assert balanced.item() == pytest.approx(torch.nn.functional.cross_entropy(logits, labels).item(), rel=1e-6)


@pytest.mark.parametrize("balanced", [True, False])
def test_training_learns_and_leaves_the_model_in_eval_mode(balanced):
    data, trained = easy_data(), model()
    train(trained, data, epochs=15, balanced=balanced, seed=0)
    assert not trained.training
    assert evaluate(trained, data, CPU) == 1.0


def test_training_is_deterministic_and_the_seed_matters():
    results = []
    for seed in (1, 1, 2):
        trained = model()
        train(trained, easy_data(), epochs=2, balanced=True, seed=seed)
        results.append(weights_of(trained))
    assert torch.equal(results[0], results[1])
    assert not torch.equal(results[0], results[2])


def test_plain_training_unlearns_an_unseen_class_and_balanced_training_does_not():
    data = easy_data()
    seen = data.subset(np.flatnonzero(data.labels != 2))
    unseen = data.subset(np.flatnonzero(data.labels == 2))
    kept = {}
    for balanced in (True, False):
        trained = model()
        train(trained, data, epochs=15, balanced=True, seed=0)
        train(trained, seen, epochs=60, balanced=balanced, seed=1)
        kept[balanced] = predict_logits(trained, unseen.images, CPU)
    margin = {balanced: (z[:, 2] - z[:, :2].max(axis=1)).mean() for balanced, z in kept.items()}
    assert margin[True] > margin[False]


def test_every_image_is_seen_once_an_epoch_and_no_batch_has_one_image():
    batches = list(shuffled_batches(17, epochs=2, batch_size=8, seed=0))
    assert [len(batch) for batch in batches] == [6, 6, 5, 6, 6, 5]
    assert sorted(torch.cat(batches[:3]).tolist()) == list(range(17))
    assert torch.cat(batches[:3]).tolist() != torch.cat(batches[3:]).tolist()


@given(count=st.integers(1, 70), batch_size=st.integers(2, 40))
def test_batches_are_even_and_none_holds_one_image(count, batch_size):
    sizes = [len(batch) for batch in shuffled_batches(count, epochs=1, batch_size=batch_size, seed=0)]
    assert sum(sizes) == count
    assert max(sizes) - min(sizes) <= 1
    assert max(sizes) <= batch_size + (1 if batch_size == 2 else 0)
    assert min(sizes) >= min(2, count)


def test_prediction_in_batches_is_that_of_the_whole():
    trained, data = model().eval(), easy_data()
    whole = predict_logits(trained, data.images, CPU)
    assert whole.shape == (30, 3)
    assert whole.dtype == np.float32
    assert np.allclose(whole, predict_logits(trained, data.images, CPU, batch_size=7), atol=1e-5)
    assert evaluate(trained, data, CPU) == (whole.argmax(1) == data.labels).mean()


def test_errors_say_what_is_wrong():
    data = easy_data()
    with pytest.raises(TrainingError, match="at least 2"):
        train(model(), data.subset(np.array([0])), epochs=1, balanced=True, seed=0)
    with pytest.raises(TrainingError, match="above 0"):
        train(model(), data, epochs=1, balanced=True, seed=0, class_counts=np.array([1, 0, 1], np.float32))
    with pytest.raises(TrainingError, match="learning rate"):
        train(model(), LabelledImages(data.images * np.float32(1e38), data.labels, 3), epochs=1, balanced=True, seed=0)
    with pytest.raises(TrainingError, match="no images"):
        evaluate(model(), data.subset(np.array([], np.int64)), CPU)
    with pytest.raises(TrainingError, match="batch_size=1"):
        list(shuffled_batches(4, 1, 1, 0))


@pytest.mark.parametrize("balanced", [True, False])
def test_training_at_chance_is_told_and_one_that_learns_is_not(balanced):
    told: list[str] = []
    with convergence_warnings_to(told.append):
        train(model(), easy_data(), epochs=6, balanced=balanced, seed=0)
        train(model(), easy_data(), epochs=0, balanced=balanced, seed=0, lr=30.0)
        assert told == []
        train(model(), easy_data(), epochs=6, balanced=balanced, seed=0, lr=30.0)
        train(model(), easy_data(), epochs=6, balanced=balanced, seed=1, lr=30.0)
    assert len(told) == 2 and "lr=30.0 ended no better than a guess" in told[0]


def test_images_of_one_class_are_never_at_chance():
    alike = easy_data().subset(np.arange(0, 30, 3))
    with warnings.catch_warnings():
        warnings.simplefilter("error", ConvergenceWarning)
        train(model(), alike, epochs=1, balanced=False, seed=0, lr=1e-9)


def test_other_warnings_go_where_they_went(recwarn):
    told: list[str] = []
    with convergence_warnings_to(told.append):
        warnings.warn("mind the step", UserWarning, stacklevel=1)
    assert told == [] and [str(warning.message) for warning in recwarn] == ["mind the step"]


def test_rates_stay_or_fall_to_nothing_along_half_a_cosine():
    assert [rate_factor("constant", step, 4) for step in range(4)] == [1, 1, 1, 1]
    assert [rate_factor("cosine", step, 4) for step in range(5)] == pytest.approx([1, 0.8536, 0.5, 0.1464, 0], abs=1e-4)
    assert rate_factor("cosine", 0, 0) == 1


@pytest.mark.parametrize("schedule", ["constant", "cosine"])
@pytest.mark.parametrize("momentum", [0.0, 0.9])
def test_a_descent_takes_the_steps_of_torchs_optimiser_without_its_compiler(momentum, schedule, monkeypatch):
    ours, theirs = model(), model()
    for one in (ours, theirs):
        next(one.parameters()).requires_grad_(False)
    images, labels = torch.from_numpy(easy_data().images), torch.from_numpy(easy_data().labels)
    optimiser = torch.optim.SGD(
        theirs.parameters(), lr=0.1, momentum=momentum, weight_decay=0.01, nesterov=momentum > 0
    )
    for step in range(5):
        optimiser.param_groups[0]["lr"] = 0.1 * rate_factor(schedule, step, 5)
        optimiser.zero_grad()
        torch.nn.functional.cross_entropy(theirs(images), labels).backward()
        torch.nn.utils.clip_grad_norm_(theirs.parameters(), 0.5)
        optimiser.step()
    monkeypatch.setitem(sys.modules, "torch._dynamo", None)
    with pytest.raises(ImportError):
        optimiser.step()
    descent = Descent(ours, lr=0.1, momentum=momentum, weight_decay=0.01, schedule=schedule, steps=5)
    for _ in range(5):
        descent.backward(torch.nn.functional.cross_entropy(ours(images), labels))
        descent.shorten(0.5)
        descent.step()
    assert torch.equal(weights_of(ours), weights_of(theirs))


def test_training_follows_its_schedule():
    """A training that anneals ends elsewhere than one that does not, and the first steps are alike."""
    ends = {}
    for schedule in ("constant", "cosine"):
        trained = model()
        train(trained, easy_data(), epochs=5, balanced=True, seed=0, schedule=schedule)
        ends[schedule] = weights_of(trained)
    assert not torch.equal(ends["constant"], ends["cosine"])
    first = [model(), model()]
    for trained, schedule in zip(first, ("constant", "cosine"), strict=True):
        one = easy_data().subset(np.arange(8))
        train(trained, one, epochs=1, balanced=True, seed=0, schedule=schedule)
    assert torch.equal(*(weights_of(trained) for trained in first))
