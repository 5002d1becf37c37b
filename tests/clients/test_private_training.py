"""DP-SGD, its plan, and what keeps a charge from being paid twice; every defence with the same test without it."""

import copy
import errno
import threading
import time
import warnings
import weakref
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext, suppress
from dataclasses import replace

import numpy as np
import pytest
import torch
from cryptography.hazmat.primitives.ciphers import Cipher
from cryptography.hazmat.primitives.ciphers.algorithms import AES
from cryptography.hazmat.primitives.ciphers.modes import ECB
from scipy.stats import kstest
from torch import nn
from torch.nn import functional

from codream_clients.data import augmentation
from codream_clients.data.datasets import LabelledImages, pool
from codream_clients.learning.training import TrainingError
from codream_clients.models.passes import in_parts
from codream_clients.models.zoo import build
from codream_clients.privacy import releases
from codream_clients.privacy import training as private_training
from codream_clients.privacy.accounting import SampledGaussian, epsilon_of
from codream_clients.privacy.ledger import BudgetExceeded
from codream_clients.privacy.noise import NoiseSource, Stream
from codream_clients.privacy.participant import require_private_model
from codream_clients.privacy.plan import WARM_UP, PlannedCharges, PrivacySettings, WeakDelta, plan_privacy
from codream_clients.privacy.releases import ReleaseError, Releases
from codream_clients.privacy.training import PrivateTraining, RecordsFailed, private_sgd
from codream_protocols import durable
from codream_protocols.settings import SettingsError

CPU = torch.device("cpu")
QUICK = PrivacySettings(epsilon=8.0, batch_size=16, warm_up_epochs=2, accountant="rdp")


pytestmark = pytest.mark.usefixtures("one_thread")


def images(count=24, seed=0, scale=1.0):
    rng = np.random.default_rng(seed)
    pixels = (scale * rng.standard_normal((count, 1, 8, 8))).astype(np.float32)
    return LabelledImages(pixels, rng.integers(0, 10, count), 10)


def model(name="cnn2_gn"):
    return build(name, channels=1, size=8, classes=10, seed=0)


def weights(network):
    return torch.cat([weight.detach().flatten() for weight in network.parameters()])


def plan_for(noise=0.0, rate=1.0, **changes):
    """A plan with everybody in every step, and noise as it is given, whatever it costs."""
    plan = plan_privacy(QUICK, records=24, rounds=0)
    return replace(plan, noise_multiplier=noise, sample_rate=rate, settings=replace(QUICK, **changes))


def train(network, data, plan, steps=1, counts=None, seed=7, failed=None):
    before = weights(network)
    stream = NoiseSource(seed).stream(0)
    private_sgd(network, data, plan=plan, steps=steps, class_counts=counts, stream=stream, device=CPU, failed=failed)
    return weights(network) - before


# -- the mechanism --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("bound", "holds"), [(0.3, True), (1e6, False)], ids=["clipped", "control: not clipped"])
def test_one_record_moves_a_step_by_no_more_than_its_clipped_gradient(bound, holds):
    data, outlier = images(), images(1, seed=1, scale=1000.0)
    more = pool([data, outlier])
    plan = plan_for(max_grad_norm=bound, lr=1.0)
    moved = train(model("mlp_gn"), more, plan) - train(model("mlp_gn"), data, plan)
    assert (float(moved.norm()) <= 0.3 / QUICK.batch_size * 1.001) is holds


def flat_images(count=24):
    """Each of one shade, so that moving it changes nothing."""
    shades = np.random.default_rng(2).standard_normal((count, 1, 1, 1)).astype(np.float32)
    return replace(
        images(count), images=np.ascontiguousarray(np.broadcast_to(shades, (count, 1, 8, 8))), augment="shift"
    )


@pytest.mark.parametrize("views", [1, 4])
def test_one_record_moves_a_step_by_no_more_however_many_views_it_has(views):
    data = flat_images()
    outlier = replace(images(1, seed=1, scale=1000.0), augment="shift")
    plan = plan_for(max_grad_norm=0.3, lr=1.0, views=views, physical_batch=64)
    moved = train(model("mlp_gn"), replace(pool([data, outlier]), augment="shift"), plan) - train(
        model("mlp_gn"), data, plan
    )
    assert 0.2 < float(moved.norm()) * QUICK.batch_size / 0.3 < 1.001


@pytest.mark.parametrize(
    ("part", "clip"), [(128, 0.5), (6, 1e3), (1, 1e3)], ids=["clipped", "three records at a time", "part of a record"]
)
def test_a_records_gradient_is_the_mean_of_those_of_its_views(part, clip, monkeypatch):
    """Against autograd, view by view; the views are those that the augmentation gave."""
    data, network, seen = replace(images(6), augment="affine"), model(), []
    usual = augmentation.augment_batch

    def watched(several, augment, generator):
        varied = usual(several, augment, generator)
        seen.append(varied)
        assert len(several) <= max(part, 2) and torch.equal(several[0], several[1])
        return varied

    monkeypatch.setattr(private_training, "augment_batch", watched)
    settings = {"views": 2, "max_grad_norm": clip, "lr": 1.0, "batch_size": 6, "physical_batch": part}
    moved = train(copy.deepcopy(network), data, plan_for(**settings))
    total = torch.zeros(len(moved))
    for views, label in zip(torch.cat(seen).unflatten(0, (6, 2)), torch.from_numpy(data.labels), strict=True):
        assert not torch.equal(views[0], views[1])
        network.zero_grad()
        torch.autograd.backward(functional.cross_entropy(network(views), label.repeat(2)))
        gradient = torch.cat([weight.grad.flatten() for weight in network.parameters()])
        total += gradient * min(1.0, clip / float(gradient.norm()))
    assert torch.allclose(moved, -total / 6, atol=1e-5)


def test_views_need_images_that_vary_and_gradients_one_by_one():
    plan = plan_for(views=4)
    require_private_model(model(), replace(images(), augment="shift"), plan, CPU, "cnn2_gn")
    with pytest.raises(SettingsError, match=r"views is 4 .* augment 'none'"):
        require_private_model(model(), images(), plan, CPU, "cnn2_gn")
    for mode in ("ghost", "auto"):
        with pytest.raises(SettingsError, match=f"mode is '{mode}' with views 4; 'hooks' is allowed"):
            plan_for(views=4, mode=mode)


class OfUnitLength(nn.Module):
    """A model that divides by the image's length: for an empty image its gradient is not a number."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.linear = nn.Linear(64, 10)

    def forward(self, given):
        flat = given.flatten(1)
        return self.linear(flat / flat.norm(dim=1, keepdim=True))


@pytest.mark.parametrize("mode", ["hooks", "ghost"])
@pytest.mark.parametrize("defended", [True, False], ids=["left out", "control: let through"])
@pytest.mark.parametrize("others", [23, 0], ids=["among others", "alone"])
def test_a_record_whose_gradient_is_not_finite_is_not_given_away_by_a_failure(mode, defended, others, monkeypatch):
    if not defended:
        monkeypatch.setattr(torch.Tensor, "isfinite", lambda self: torch.ones_like(self, dtype=torch.bool))
    data = images(24)
    empty = LabelledImages(np.zeros_like(data.images[:1]), data.labels[:1], 10)
    kept = LabelledImages(data.images[:others], data.labels[:others], 10)
    plan = plan_for(mode=mode, physical_batch=5)
    if not defended:
        with pytest.raises(TrainingError, match="no longer finite"):
            train(OfUnitLength(), pool([kept, empty]), plan)
        return
    moved = train(OfUnitLength(), pool([kept, empty]), plan)
    expected = train(OfUnitLength(), kept, plan) if others else torch.zeros(650)
    assert torch.allclose(moved, expected, atol=1e-7)


class FailsAtBright(nn.Module):
    """In its second layer, so that a pass ends half-way; or, `backward`, in the gradient of its first."""

    def __init__(self, *, backward=False):
        super().__init__()
        torch.manual_seed(0)
        self.first, self.second, self.backward = nn.Linear(64, 16), nn.Linear(16, 10), backward

    def forward(self, given):
        hidden = self.first(given.flatten(1)).tanh()
        if (given > 90).any():
            if not self.backward:
                raise ValueError("such a pixel")
            hidden.register_hook(self.fail)
        return self.second(hidden)

    def fail(self, gradient):
        raise ValueError("such a pixel")


@pytest.mark.parametrize("mode", ["hooks", "ghost"])
@pytest.mark.parametrize("backward", [False, True])
@pytest.mark.parametrize("others", [23, 0], ids=["among others", "alone"])
def test_a_record_that_a_model_fails_at_counts_as_zero_and_takes_no_other_with_it(mode, backward, others):
    """An error would tell that it is there. Control: where a model is tried, the error is what is to be told."""
    data = images(24)
    bright = LabelledImages(np.full_like(data.images[:1], 99.0), data.labels[:1], 10)
    kept = LabelledImages(data.images[:others], data.labels[:others], 10)
    plan, found = plan_for(mode=mode, physical_batch=5, lr=1.0), list[str]()
    moved = train(FailsAtBright(backward=backward), pool([bright, kept]), plan, steps=2, failed=found.append)
    expected = train(FailsAtBright(), kept, plan, steps=2) if others else torch.zeros(len(moved))
    assert torch.allclose(moved, expected, atol=1e-7) and (not others or float(moved.norm()) > 0.1)
    assert found == ["ValueError: such a pixel"] * 2
    with pytest.raises(ValueError, match="such a pixel"):
        train(FailsAtBright(backward=backward), pool([bright, kept]), plan)


class RaisedWithPass(ValueError):
    """Holds, as any error with its frames does, the tensors of the pass that failed."""

    def __str__(self):
        raise RuntimeError("no words either")


def seen(raised):
    """Such an error, which nothing here holds; not even the frame that raises it."""
    error = RaisedWithPass()
    raised.append(weakref.ref(error))
    return error


class CountsErrors(FailsAtBright):
    """Counts, as it fails, which of its earlier errors are still there."""

    def __init__(self):
        super().__init__()
        self.raised, self.outlived = [], 0

    def forward(self, given):
        if (given > 90).any():
            self.outlived += sum(error() is not None for error in self.raised)
            raise seen(self.raised)
        return super().forward(given)


def test_no_error_outlives_the_part_that_failed():
    """Neither as what was found nor as the context of the next one: each holds all tensors of its pass."""
    data, found, network = images(24), list[str](), CountsErrors()
    data.images[3] = 99.0
    train(network, data, plan_for(physical_batch=8), steps=3, failed=found.append)
    assert found == ["RaisedWithPass"] * 3 and len(network.raised) == 12
    assert network.outlived == 0 and all(error() is None for error in network.raised)


@pytest.mark.parametrize(
    "error",
    [
        MemoryError(),
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 MiB"),
        RuntimeError("[enforce fail at alloc_cpu.cpp:121] . DefaultCPUAllocator: can't allocate memory: you tried"),
        RuntimeError(f"{'of a long model, ' * 20}cuDNN error: CUDNN_STATUS_INTERNAL_ERROR"),
        RuntimeError("unable to mmap 4096 bytes: Cannot allocate memory (12)"),
        OSError(errno.ENOMEM, "Cannot allocate memory"),
    ],
    ids=lambda error: type(error).__name__,
)
def test_memory_that_is_wanting_is_no_records_failure(error):
    """It ends the training: counted as records', it would leave out whoever stands in a batch by then."""
    network, found = FailsAtBright(), list[str]()
    network.first.register_forward_pre_hook(lambda layer, given: fails_with(error))
    with pytest.raises(type(error)):
        train(network, images(24), plan_for(), failed=found.append)
    assert not found
    with pytest.raises(type(error)):
        list(in_parts(lambda part: fails_with(error), 3, 2))


def fails_with(error):
    raise error


def test_parts_go_on_without_the_error_of_the_one_before():
    raised, outlived = list[weakref.ref[RaisedWithPass]](), list[object]()

    def work(part):
        outlived.extend(error() for error in raised)
        if part.start <= 3 < part.stop:
            raise seen(raised)
        return part.start

    found = [each for _, each in in_parts(work, 8, 8)]
    assert found.count(None) == 1 and len(raised) == 4 and not any(outlived)


def test_a_training_in_which_records_fail_ends_as_ever_and_tells_its_own_site(tmp_path):
    data = images(24)
    data.images[3] = 99.0
    shelf = Releases(lambda charge: None, tmp_path)
    with pytest.warns(RecordsFailed, match=r"ValueError: such a pixel\), 2 times.*nobody else is told"):
        warnings.simplefilter("error")  # one record would end it
        PrivateTraining(plan_for(noise=1.0), None, shelf, NoiseSource(), CPU)(FailsAtBright(), data, 2, 0)


@pytest.mark.parametrize("mode", ["hooks", "ghost"])
def test_step_without_records_is_noise_of_the_stated_deviation(mode):
    plan = plan_for(noise=2.0, rate=1e-12, max_grad_norm=0.5, lr=1.0, mode=mode)
    moved = train(model(), images(), plan)
    assert float(moved.std()) == pytest.approx(2.0 * 0.5 / QUICK.batch_size, rel=0.04)
    assert abs(float(moved.mean())) < 4 * float(moved.std()) / np.sqrt(len(moved))
    assert not train(model(), images(), replace(plan, noise_multiplier=0.0)).any()  # control: no noise, no step


@pytest.mark.parametrize("huge", [False, True], ids=["empty steps", "a record without a finite gradient"])
def test_ghost_clipping_goes_on_after_a_step_without_records(huge):
    data = images(3)
    if huge:
        data.images[0] = 3e38
    steps = [train(model(), data, plan_for(rate=0.3, mode=mode), steps=12) for mode in ("hooks", "ghost")]
    assert steps[0].any() and torch.allclose(steps[0], steps[1], atol=1e-6)


@pytest.mark.parametrize("name", ["cnn2_gn", "resnet8_gn"])
@pytest.mark.parametrize("mode", ["hooks", "ghost"])
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last], ids=["ours", "control: another"])
def test_step_is_made_of_each_records_true_gradient_clipped(name, mode, layout, monkeypatch):
    """Gradients one by one, by autograd: wrong norms would let a record through that is larger than the bound."""
    monkeypatch.setattr(private_training, "LAYOUT", layout)
    data, network = images(6), model(name)
    total: torch.Tensor | float = 0.0
    for number in range(len(data)):
        network.zero_grad()
        loss = functional.cross_entropy(
            network(torch.from_numpy(data.images[[number]])), torch.from_numpy(data.labels[[number]])
        )
        torch.autograd.backward(loss)
        gradient = torch.cat([weight.grad.flatten() for weight in network.parameters()])
        total = total + gradient * min(1.0, 0.5 / float(gradient.norm()))
    moved = train(network, data, plan_for(max_grad_norm=0.5, lr=1.0, batch_size=6, mode=mode))
    assert torch.allclose(moved, -total / 6, atol=1e-4) is (layout is torch.contiguous_format)


@pytest.mark.parametrize("slow", ["hooks", "ghost"])
def test_auto_takes_the_faster_mode_and_tries_them_on_noise_alone(slow, monkeypatch):
    done, now, usual = [], 0.0, private_training.private_sgd

    def watched(network, data, *, plan, **more):
        nonlocal now
        done.append((plan.settings.mode, data))
        now += 2.0 if plan.settings.mode == slow else 1.0
        usual(network, data, plan=plan, **more)

    monkeypatch.setattr(private_training, "private_sgd", watched)
    monkeypatch.setattr(time, "perf_counter", lambda: now)
    own, network = images(), model()
    plan = plan_privacy(replace(QUICK, mode="auto", round_epochs=1), records=24, rounds=1)
    training = PrivateTraining(plan, None, Releases(lambda charge: None), NoiseSource(1), CPU)
    training(network, own, 2, 0)
    training(network, own, 1, 0)
    trained = [mode for mode, data in done if data is own]
    assert trained == ["ghost" if slow == "hooks" else "hooks"] * 2
    assert [mode for mode, data in done if data is not own] == ["hooks"] * 3 + ["ghost"] * 3  # once for both trainings
    assert not any(np.shares_memory(data.images, own.images) for _, data in done if data is not own)


def test_parts_and_modes_give_the_same_step():
    steps = [
        train(model(), images(), plan_for(physical_batch=part, mode=mode), steps=3)
        for part, mode in ((128, "hooks"), (7, "hooks"), (128, "ghost"), (5, "ghost"))
    ]
    assert steps[0].norm() > 0
    for other in steps[1:]:
        assert torch.allclose(steps[0], other, atol=1e-6)


def test_the_sum_is_divided_by_the_expected_batch_and_not_by_the_actual_one():
    half = train(model(), images(), plan_for(batch_size=48, lr=0.01))
    assert torch.allclose(2 * half, train(model(), images(), plan_for(batch_size=24, lr=0.01)), atol=1e-6)


def test_records_take_part_at_random_and_independently():
    data = images(400)
    counted = []
    network = nn.Sequential(nn.Flatten(), nn.Linear(64, 10))
    network.register_forward_hook(lambda layer, given, output: counted.append(len(output)))
    train(network, data, plan_for(rate=0.1, physical_batch=1000), steps=200)
    assert np.mean(counted) == pytest.approx(40, abs=2)
    assert np.std(counted) == pytest.approx(6, abs=1.2)  # binomial; a shuffled epoch's would be 0


def test_a_class_that_the_noisy_histogram_misses_can_be_trained_on():
    counts = np.zeros(10, dtype=np.float32)
    counts[0] = 20.0
    assert torch.isfinite(train(model(), images(), plan_for(), counts=counts)).all()


def test_nothing_of_opacus_stays_on_the_model():
    network = model()
    train(network, images(), plan_for())
    copy.deepcopy(network)
    assert not network.training
    assert not any(hasattr(weight, "grad_sample") for weight in network.parameters())
    assert not any(layer._forward_hooks or layer._backward_hooks for layer in network.modules())


# -- plan -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("statistics_share", [0.0, 0.2])
@pytest.mark.parametrize("rounds", [0, 3])
def test_the_whole_plan_spends_the_budget_and_no_more(statistics_share, rounds):
    settings = replace(QUICK, statistics_share=statistics_share, round_epochs=1)
    plan = plan_privacy(settings, records=200, rounds=rounds)
    spent = epsilon_of(plan.charges, plan.delta, "rdp")
    assert 0.98 * settings.epsilon <= spent <= settings.epsilon
    assert len(plan.charges) == 2 + (statistics_share > 0) + rounds


def test_rounds_that_train_ask_for_more_noise_and_rounds_that_do_not_ask_for_none():
    quiet = [plan_privacy(QUICK, records=200, rounds=rounds).noise_multiplier for rounds in (0, 5)]
    busy = plan_privacy(replace(QUICK, round_epochs=1), records=200, rounds=5).noise_multiplier
    assert quiet[0] == quiet[1] < busy


def test_delta_is_below_one_in_n_and_a_weaker_one_is_warned_of():
    assert plan_privacy(QUICK, records=200, rounds=0).delta < 1 / 200
    with pytest.warns(WeakDelta, match=r"1/n is 0\.005"):
        plan_privacy(replace(QUICK, delta=0.005), records=200, rounds=0)


def test_the_rate_follows_from_the_declared_number_of_records():
    declared = replace(QUICK, records=1000)
    plans = [plan_privacy(declared, records=records, rounds=0) for records in (900, 1100)]
    assert plans[0] == plans[1] and plans[0].sample_rate == 16 / 1000
    assert plan_privacy(QUICK, records=900, rounds=0).sample_rate == 16 / 900


@pytest.mark.parametrize(
    "wrong",
    [
        {"epsilon": 0.0},
        {"epsilon": float("inf")},
        {"delta": 1.0},
        {"records": 0},
        {"batch_size": 0},
        {"warm_up_epochs": 0},
        {"max_grad_norm": -1.0},
        {"histogram_share": 0.0},
        {"momentum": 1.0},
        {"accountant": "gdp"},
        {"mode": "magic"},
        {"statistics_share": 0.95},
    ],
)
def test_settings_out_of_range_are_refused_by_name(wrong):
    with pytest.raises(SettingsError, match=next(iter(wrong))):
        replace(QUICK, **wrong)


def test_each_planned_charge_may_be_taken_once():
    plan = plan_privacy(QUICK, records=200, rounds=0)
    planned = PlannedCharges(plan)
    planned.reserve(plan.histogram)
    with pytest.raises(BudgetExceeded, match="is spent"):
        planned.reserve(plan.histogram)
    with pytest.raises(BudgetExceeded, match="not planned"):
        planned.reserve(SampledGaussian(0.1, 1.0, 1, "more"))


# -- noise and releases -----------------------------------------------------------------------------------------


def test_noise_repeats_only_where_a_seed_says_so():
    def drawn(source):
        return source.stream(1).bytes(16), source.stream(2).normal(4).tolist()

    assert drawn(NoiseSource(3)) == drawn(NoiseSource(3)) != drawn(NoiseSource(4))
    assert drawn(NoiseSource()) != drawn(NoiseSource())
    assert NoiseSource(3).stream(1).bytes(16) != NoiseSource(3).stream(2).bytes(16)


def test_a_stream_is_aes_in_counter_mode():
    key = bytes(range(32))
    block = Cipher(AES(key), ECB()).encryptor()
    counted = b"".join(block.update(number.to_bytes(16)) for number in range(4))
    stream = Stream(key)
    assert stream.bytes(5) + stream.bytes(59) == counted
    with pytest.raises(ValueError, match="a key of 31 bytes; 32 are needed"):
        Stream(bytes(31))


def test_a_streams_numbers_have_their_distributions():
    stream = NoiseSource(0).stream(0)
    uniform, drawn = stream.uniform(200_000), stream.normal(199_999)
    assert len(drawn) == 199_999 and uniform.min() > 0 and uniform.max() < 1
    assert kstest(uniform, "uniform").pvalue > 1e-3 and kstest(drawn, "norm").pvalue > 1e-3
    for end, low, high in ((b"\0", 0, 2**-52), (b"\xff", 1 - 2**-52, 1)):
        extreme = type("Extreme", (Stream,), {"bytes": lambda self, count, end=end: end * count})(bytes(32))
        assert low < extreme.uniform(1)[0] < high
    words = [NoiseSource(0).stream(0).generator().get_state() for _ in range(2)]
    assert torch.equal(*words)
    normal = torch.randn(20_000, generator=NoiseSource().stream(0).generator())
    assert abs(float(normal.mean())) < 0.04 and float(normal.std()) == pytest.approx(1, abs=0.03)


@pytest.mark.parametrize("mode", ["hooks", "ghost"])
def test_nothing_secret_is_drawn_by_a_generator_that_can_be_computed_from_its_draws(mode, monkeypatch):
    """Torch's Mersenne Twister is linear in its state: known noise gives all other noise, and the choice of records."""

    def forbidden(*arguments, **options):
        raise AssertionError("drawn from torch")

    for name in ("normal", "randn", "rand", "bernoulli"):
        monkeypatch.setattr(torch, name, forbidden)
    noisy = train(model(), images(), plan_for(noise=2.0, rate=0.5, mode=mode), steps=2)
    monkeypatch.setattr(Stream, "normal", lambda self, count: np.zeros(count))
    assert not torch.equal(noisy, train(model(), images(), plan_for(noise=2.0, rate=0.5, mode=mode), steps=2))


class WithDropout(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.layers = nn.Sequential(nn.Flatten(), nn.Dropout(0.5), nn.Linear(64, 10))

    def forward(self, given):
        return self.layers(given)


def test_what_layers_draw_in_private_training_follows_from_its_stream_alone():
    """Masks go to records by their place: who knew them would see one record more shift those of all behind it."""

    def moved(seed, known):
        network = WithDropout()
        torch.manual_seed(known)
        before = torch.get_rng_state()
        step = train(network, images(), plan_for(), seed=seed)
        assert torch.equal(torch.get_rng_state(), before)
        return step

    assert torch.equal(moved(7, known=0), moved(7, known=1))
    assert not torch.equal(moved(7, known=0), moved(8, known=0))


@pytest.mark.parametrize(
    ("augment", "same"), [("shift", False), ("none", True)], ids=["varied", "control: as they are"]
)
def test_how_images_vary_is_drawn_from_the_noise_and_not_from_a_known_seed(augment, same):
    data, reached = replace(images(), augment=augment), []
    for source in (NoiseSource(1), NoiseSource(2)):
        network = model()
        PrivateTraining(plan_for(noise=1e-9), None, Releases(lambda charge: None), source, CPU)(network, data, 2, 0)
        reached.append(weights(network))
    first, second = reached
    assert torch.allclose(first, second, atol=1e-6) is same


def spender(plan, kept):
    return PrivateTraining(plan, None, kept, NoiseSource(1), CPU)


@pytest.mark.parametrize("allowed", [False, True], ids=["refused", "control: allowed"])
def test_training_that_the_ledger_refuses_leaves_the_model_as_it_was(allowed):
    def reserve(charge):
        if not allowed:
            raise BudgetExceeded("nothing is left")

    network, plan = model(), plan_privacy(QUICK, records=24, rounds=0)
    before = weights(network)
    training = spender(plan, Releases(reserve))
    if allowed:
        training(network, images(), 2, 0)
    else:
        with pytest.raises(BudgetExceeded):
            training(network, images(), 2, 0)
    assert torch.equal(weights(network), before) is not allowed


def test_every_training_is_charged_before_it_runs_and_a_round_without_epochs_is_not():
    plan = plan_privacy(replace(QUICK, round_epochs=1), records=24, rounds=2)
    charges: list[SampledGaussian] = []
    training, network = spender(plan, Releases(charges.append)), model()
    for epochs in (2, 1, 0, 1):
        training(network, images(), epochs, 0)
    assert [charge.purpose for charge in charges] == ["warm-up", "round 1", "round 3"]
    assert [charge.steps for charge in charges] == [3, 2, 2]


def test_rounds_that_do_not_train_cost_nothing_and_leave_more_to_those_that_do():
    every = plan_privacy(replace(QUICK, round_epochs=1), records=200, rounds=4)
    first = plan_privacy(replace(QUICK, round_epochs=1, training_rounds=1), records=200, rounds=4)
    assert [charge.purpose for charge in first.charges] == ["label histogram", "warm-up", "round 1"]
    assert len(every.charges) == 6 and first.noise_multiplier < every.noise_multiplier
    assert epsilon_of(first.charges, first.delta, first.settings.accountant) <= first.epsilon
    assert plan_privacy(replace(QUICK, round_epochs=1, training_rounds=9), records=200, rounds=4) == replace(
        every, settings=replace(every.settings, training_rounds=9)
    )
    with pytest.raises(SettingsError, match="training_rounds is 0"):
        replace(QUICK, training_rounds=0)


@pytest.mark.parametrize("warmed_up", [True, False], ids=["told", "control: not told"])
def test_first_training_of_a_model_that_is_gone_on_with_is_a_rounds(tmp_path, warmed_up):
    """Else it would count as the warm-up, and the kept one would take the place of what the model has learnt since."""
    plan = plan_privacy(replace(QUICK, round_epochs=2), records=24, rounds=2)
    charges: list[SampledGaussian] = []
    shelf, network = Releases(charges.append, tmp_path), model()
    spender(plan, shelf)(network, images(), 2, 0)
    kept = weights(network)
    with torch.no_grad():
        for weight in network.parameters():
            weight += 100.0
    PrivateTraining(plan, None, shelf, NoiseSource(2), CPU, warmed_up=warmed_up)(network, images(), 2, 0)
    assert [charge.purpose for charge in charges] == ["warm-up", "round 1"][: 1 + warmed_up]
    assert torch.equal(weights(network), kept) is not warmed_up


def test_a_damaged_release_is_named_and_not_paid_for_again(tmp_path):
    charges: list[SampledGaussian] = []
    charge = plan_for(noise=1.0).training(2, WARM_UP)

    def mechanism(iterates):
        return {"weights": torch.ones(3)}

    Releases(charges.append, tmp_path).once(charge, mechanism)
    (kept,) = tmp_path.glob("*.pt")
    whole = kept.read_bytes()
    for damaged in (b"", b"rubbish", whole[: len(whole) // 2]):
        kept.write_bytes(damaged)
        with pytest.raises(ReleaseError, match="found no sound release"):
            Releases(charges.append, tmp_path).once(charge, mechanism)
    kept.write_bytes(whole)
    assert Releases(charges.append, tmp_path).once(charge, mechanism)["weights"].tolist() == [1.0, 1.0, 1.0]
    assert len(charges) == 1


@pytest.mark.parametrize("alone", [True, False], ids=["one after the other", "control: side by side"])
def test_two_that_want_one_release_at_once_pay_once(tmp_path, monkeypatch, alone):
    if not alone:
        monkeypatch.setattr(releases, "_alone", lambda lock: nullcontext())
    meeting = threading.Barrier(2)
    charges: list[SampledGaussian] = []
    plan = plan_privacy(QUICK, records=24, rounds=0)

    def mechanism(iterates):
        with suppress(threading.BrokenBarrierError):
            meeting.wait(timeout=0.5)  # passes only if both are in it
        return {"weight": torch.ones(1)}

    def want():
        return Releases(charges.append, tmp_path).once(plan.training(2, WARM_UP), mechanism)

    with ThreadPoolExecutor(2) as pool:
        wanted = [pool.submit(want), pool.submit(want)]
    if alone:
        assert torch.equal(*(future.result()["weight"] for future in wanted))
    assert len(charges) == (1 if alone else 2)


def test_a_kept_warm_up_is_not_paid_for_again(tmp_path):
    plan = plan_privacy(QUICK, records=24, rounds=0)
    reached = []
    charges: list[SampledGaussian] = []
    for key in ("same", "same", "other"):
        network = model()
        spender(plan, Releases(charges.append, tmp_path, key))(network, images(), 2, 0)
        reached.append(weights(network))
    assert torch.equal(reached[0], reached[1]) and len(charges) == 2
    spender(plan, Releases(charges.append))(model(), images(), 2, 0)  # control: nothing kept
    spender(plan, Releases(charges.append))(model(), images(), 2, 0)
    assert len(charges) == 4


def test_release_is_on_the_disk_under_its_name_before_it_is_given(tmp_path, monkeypatch):
    """A rename that a loss of power takes back would have the charge paid twice."""
    synced = []
    monkeypatch.setattr(durable, "sync_folder", lambda folder: synced.append((folder, len([*folder.glob("*.pt")]))))
    charge = plan_for(noise=1.0).training(2, WARM_UP)
    Releases(lambda charge: None, tmp_path).once(charge, lambda iterates: {"weights": torch.ones(3)})
    assert synced == [(tmp_path, 1)]


# -- processes that end anywhere ------------------------------------------------------------------------------------


class Books:
    """A ledger in memory for one process after another, which pays no more than `most` charges."""

    def __init__(self, most=1):
        self.begun: list[SampledGaussian] = []
        self.done: list[SampledGaussian] = []
        self.most = most

    def reserve(self, charge):
        if len(self.begun) == self.most:
            raise BudgetExceeded("nothing is left")
        self.begun.append(charge)

    def released(self, charge):
        if charge not in self.done:
            self.done.append(charge)

    def process(self, folder, resumes=True):
        open_ones = [charge for charge in self.begun if charge not in self.done]
        return Releases(
            self.reserve, folder, "key", released=self.released, spent=self.done, unreleased=open_ones, resumes=resumes
        )


class Killed(BaseException):
    pass


def killed_after(steps, monkeypatch):
    """Have the process die in the step after so many; `noise` has what each step really drew."""
    usual, noise = Stream.normal, []  # type: ignore[var-annotated]

    def draw(self, count):
        if len(noise) == steps:
            raise Killed
        noise.append(usual(self, count))
        return noise[-1]

    monkeypatch.setattr(Stream, "normal", draw)
    return noise


@pytest.mark.parametrize("number", [0, 1], ids=["warm-up", "round"])
@pytest.mark.parametrize("steps", [0, 1, 3, 5])
def test_a_training_that_was_killed_goes_on_within_its_charge(tmp_path, monkeypatch, number, steps):
    """All steps are made, with new noise, and nothing is paid for twice: at whatever step the process died."""
    monkeypatch.setattr(releases, "KEPT_EVERY", 0.0)
    plan, books, made = plan_privacy(replace(QUICK, round_epochs=4), records=24, rounds=1), Books(), []
    usual = private_training.private_sgd

    def counted(*arguments, **options):
        made.append(options["steps"])
        usual(*arguments, **options)

    monkeypatch.setattr(private_training, "private_sgd", counted)

    def start():
        training = PrivateTraining(plan, None, books.process(tmp_path), NoiseSource(), CPU, warmed_up=number > 0)
        network = model("mlp_gn")
        training(network, images(), 4, 0)
        return weights(network)

    tensors = len([*model("mlp_gn").parameters()])
    with monkeypatch.context() as patch:
        first = killed_after(steps * tensors, patch)
        with pytest.raises(Killed):
            start()
    with monkeypatch.context() as patch:
        second = killed_after(10**6, patch)
        start()
    assert made == [6, 6 - steps] and len(second) == (6 - steps) * tensors and len(books.begun) == 1
    assert not first or not np.array_equal(first[0], second[0])
    assert not [*tmp_path.glob("*.part.pt")] and len(books.done) == 1


def by_hand(iterates, averaging):
    """The mean of all iterates (steps, d), whose first ones are forgotten sooner."""
    mean = iterates[0]
    for taken, newest in enumerate(iterates[1:], start=1):
        kept = min(averaging, taken / (taken + 10))
        mean = kept * mean + (1 - kept) * newest
    return mean


@pytest.mark.parametrize("killed", [None, 0, 1, 4], ids=lambda steps: f"killed after {steps}")
def test_the_model_is_the_mean_of_all_iterates_also_where_a_process_ended(tmp_path, monkeypatch, killed):
    monkeypatch.setattr(releases, "KEPT_EVERY", 0.0)
    plan = plan_privacy(replace(QUICK, averaging=0.25), records=24, rounds=0)
    books, iterates, usual = Books(), [], private_training.private_sgd

    def seen(network, *arguments, after, **options):
        def done(steps):
            iterates.append(weights(network).double())
            after(steps)

        usual(network, *arguments, after=done, **options)

    monkeypatch.setattr(private_training, "private_sgd", seen)
    network = model("mlp_gn")
    if killed is not None:
        with monkeypatch.context() as patch:
            killed_after(killed * len([*network.parameters()]), patch)
            with pytest.raises(Killed):
                PrivateTraining(plan, None, books.process(tmp_path), NoiseSource(), CPU)(network, images(), 4, 0)
    PrivateTraining(plan, None, books.process(tmp_path), NoiseSource(), CPU)(network, images(), 4, 0)
    assert len(iterates) == 6 and len(books.begun) == 1
    assert torch.allclose(weights(network).double(), by_hand(iterates, 0.25), atol=1e-7)
    assert not torch.allclose(weights(network).double(), iterates[-1], atol=1e-3)  # control: the last one


def test_what_a_training_has_reached_was_released_and_losing_it_is_paid_for(tmp_path, monkeypatch):
    monkeypatch.setattr(releases, "KEPT_EVERY", 0.0)
    plan, books = plan_privacy(QUICK, records=24, rounds=0), Books()
    with monkeypatch.context() as patch:
        killed_after(2 * len([*model("mlp_gn").parameters()]), patch)
        with pytest.raises(Killed):
            PrivateTraining(plan, None, books.process(tmp_path), NoiseSource(), CPU)(model("mlp_gn"), images(), 4, 0)
    (reached,) = tmp_path.glob("*.part.pt")
    reached.unlink()
    again = PrivateTraining(plan, None, books.process(tmp_path), NoiseSource(), CPU)
    with pytest.raises(BudgetExceeded):
        again(model("mlp_gn"), images(), 4, 0)


@pytest.mark.parametrize(("failure", "costs"), [(TrainingError, 2), (Killed, 1)], ids=["failed", "killed"])
def test_a_mechanism_that_fails_by_itself_is_paid_for_again_and_one_that_was_killed_is_not(tmp_path, failure, costs):
    """That it failed, others see: it is an outcome of the mechanism, as a release is."""
    charge, books = plan_for(noise=1.0).training(2, WARM_UP), Books(most=2)

    def fails(iterates):
        raise failure("no longer")

    for place in ("once", "run"):
        books = Books(most=2)
        with pytest.raises(failure):
            getattr(books.process(tmp_path / place), place)(charge, fails)
        getattr(books.process(tmp_path / place), place)(charge, lambda iterates: {"weights": torch.ones(1)})
        assert len(books.begun) == costs


def test_a_release_that_is_lost_is_paid_for_again(tmp_path):
    charge, books = plan_for(noise=1.0).training(2, WARM_UP), Books()
    for expected in (True, True):
        kept = books.process(tmp_path).once(charge, lambda iterates: {"weights": torch.ones(1)})
        assert bool(kept) is expected
    for path in tmp_path.glob("*.pt"):
        path.unlink()
    with pytest.raises(BudgetExceeded):
        books.process(tmp_path).once(charge, lambda iterates: {"weights": torch.ones(1)})


@pytest.mark.parametrize("number", [0, 1], ids=["warm-up", "round"])
def test_a_model_is_touched_only_once_its_release_is_written_down(tmp_path, monkeypatch, number):
    """A full disk would leave noised weights that answer, and that a second try, within the same charge, makes anew."""
    plan, network = plan_privacy(replace(QUICK, round_epochs=2), records=24, rounds=1), model("mlp_gn")

    def full(*arguments):
        raise OSError("no space left on device")

    monkeypatch.setattr(releases, "_keep", full)
    shelf = Releases(lambda charge: None, tmp_path, "key", released=full)
    before = weights(network)
    with pytest.raises(OSError, match="no space"):
        PrivateTraining(plan, None, shelf, NoiseSource(), CPU, warmed_up=number > 0)(network, images(), 2, 0)
    assert torch.equal(weights(network), before)
    monkeypatch.undo()
    PrivateTraining(plan, None, Releases(lambda charge: None, tmp_path), NoiseSource(), CPU)(network, images(), 2, 0)
    assert not torch.equal(weights(network), before)  # control
