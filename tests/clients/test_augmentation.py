import hashlib
import math

import numpy as np
import pytest
import torch

from codream_clients.data.augmentation import (
    augment_batch,
    augmentation_generator,
    mixed_batch,
    shift_batch,
    warp_batch,
    with_views,
)
from codream_clients.data.datasets import DatasetError, LabelledImages, pool
from codream_clients.learning.local_work import train_epochs
from codream_clients.learning.settings import LearningSettings
from codream_clients.models.zoo import build
from codream_protocols.starts import draw

IMAGES = torch.arange(64 * 2 * 16 * 16, dtype=torch.float32).view(64, 2, 16, 16)


def varied(augment, seed=0, images=IMAGES):
    return augment_batch(images, augment, augmentation_generator(seed))


def labelled(augment="none"):
    rng = np.random.default_rng(0)
    return LabelledImages(rng.standard_normal((20, 1, 8, 8)).astype(np.float32), np.arange(20) % 2, 2, augment)


def test_none_changes_nothing():
    assert varied("none") is IMAGES


@pytest.mark.parametrize("augment", ["shift", "flip-crop"])
def test_images_vary_by_the_seed_alone_and_hold_only_their_own_pixels(augment):
    torch.manual_seed(0)
    one = varied(augment)
    torch.manual_seed(1)
    assert torch.equal(varied(augment), one)
    assert not torch.equal(varied(augment, seed=1), one)
    assert one.shape == IMAGES.shape
    for before, after in zip(IMAGES, one, strict=True):
        assert set(after[1].flatten().tolist()) <= set(before[1].flatten().tolist())


def test_shift_moves_by_an_eighth_at_most_and_repeats_the_border():
    moved = varied("shift")[:, 0]
    offsets = set()
    for before, after in zip(IMAGES[:, 0], moved, strict=True):
        matches = [
            (down, right)
            for down in range(-2, 3)
            for right in range(-2, 3)
            if torch.equal(
                after,
                before[(torch.arange(16) + down).clamp(0, 15)][:, (torch.arange(16) + right).clamp(0, 15)],
            )
        ]
        assert len(matches) == 1
        offsets.update(matches)
    assert len(offsets) > 15  # of 25


def test_about_half_are_mirrored():
    mirrored = (varied("flip-crop")[:, 0, 8].diff(dim=1).sum(dim=1) < 0).float().mean()
    assert 0.3 < mirrored < 0.7


def test_tiny_images_vary_by_one_pixel():
    assert varied("flip-crop", images=IMAGES[:, :, :8, :8]).shape == (64, 2, 8, 8)
    assert varied("shift", images=IMAGES[:, :, :1, :1]).shape == (64, 2, 1, 1)


def test_augmentation_travels_with_the_images():
    data = labelled("shift")
    assert data.subset(np.arange(3)).augment == "shift"
    assert pool([data, data]).augment == "shift"
    with pytest.raises(DatasetError, match="augment"):
        pool([data, labelled()])
    with pytest.raises(DatasetError, match="'rotate'; allowed are none, shift, affine, flip-crop"):
        labelled("rotate")


def test_training_varies_the_images_and_stays_deterministic():
    def trained(augment):
        model = build("cnn2", channels=1, size=8, classes=2, seed=0)
        settings = LearningSettings(batch_size=8, lr=0.05, momentum=0.9, weight_decay=0.0)
        train_epochs(model, labelled(augment), settings, epochs=2, seed=3, device=torch.device("cpu"))
        return torch.cat([weight.detach().flatten() for weight in model.parameters()])

    assert torch.equal(trained("shift"), trained("shift"))
    assert not torch.equal(trained("shift"), trained("none"))
    assert not torch.equal(trained("shift"), trained("flip-crop"))
    assert not torch.equal(trained("shift"), trained("affine"))


@pytest.mark.parametrize("reach", [1, 3])
def test_shift_batch_moves_by_its_reach_at_most_and_takes_every_place(reach):
    generator = augmentation_generator(0)
    images = torch.zeros(1, 1, 16, 16)
    images[0, 0, 8, 8] = 1.0
    places = {
        tuple(shift_batch(images, reach, generator)[0, 0].nonzero()[0].tolist())
        for _ in range(40 * (2 * reach + 1) ** 2)
    }
    assert places == {(8 + y, 8 + x) for y in range(-reach, reach + 1) for x in range(-reach, reach + 1)}


def test_shift_batch_by_nothing_is_the_same_tensor():
    assert shift_batch(IMAGES, 0, augmentation_generator(0)) is IMAGES


def moments(images):
    """Centres (N, 2) and covariances (N, 2, 2) of the brightness of (N, 1, H, W), in pixels."""
    axis = torch.arange(images.shape[-1], dtype=torch.float64)
    places = torch.stack(torch.meshgrid(axis, axis, indexing="ij")).flatten(1)
    shares = images.double().flatten(1) / images.double().sum(dim=(1, 2, 3)).unsqueeze(1)
    centres = shares @ places.T
    away = places.T.unsqueeze(0) - centres.unsqueeze(1)
    return centres, torch.einsum("np,npi,npj->nij", shares, away, away)


def test_warped_images_are_moved_turned_and_scaled_within_their_bounds():
    bar = torch.zeros(1, 1, 64, 64)
    bar[..., 22:42, 30:34] = 1.0
    warped = warp_batch(bar.repeat(400, 1, 1, 1), augmentation_generator(0))
    (before,), (spread,) = moments(bar)
    centres, spreads = moments(warped)
    moved = (centres - before).abs().amax(dim=0)
    assert (moved > 6).all() and (
        moved < 8 + 2.5
    ).all()  # 1/8 of 64, and some more where scale and turn move the centre
    lengths = (torch.linalg.eigvalsh(spreads)[:, 1] / torch.linalg.eigvalsh(spread)[1]).sqrt()
    assert lengths.min() < 0.9 and lengths.max() > 1.1 and lengths.min() > 0.8 and lengths.max() < 1.25
    directions = torch.linalg.eigh(spreads).eigenvectors[:, :, 1]
    angles = torch.rad2deg(torch.atan2(directions[:, 1], directions[:, 0]))
    angles = (angles + 90) % 180 - 90
    assert angles.max() > 10 and angles.min() < -10 and angles.abs().max() < 15 + 10 + 1


def test_warping_follows_from_the_generator_and_keeps_a_flat_image():
    one, two = (warp_batch(IMAGES, augmentation_generator(seed)) for seed in (1, 2))
    assert torch.equal(one, warp_batch(IMAGES, augmentation_generator(1))) and not torch.equal(one, two)
    flat = torch.full((3, 2, 8, 8), 0.7)
    assert torch.allclose(warp_batch(flat, augmentation_generator(0)), flat)


def test_a_mixed_image_has_pixels_of_two_images_and_of_no_third():
    flat = torch.arange(8.0).view(8, 1, 1, 1).expand(8, 1, 6, 6).contiguous()
    mixed = mixed_batch(flat, np.random.default_rng(3).integers(0, 1 << 32, (7, 8), dtype=np.uint32))
    found = [set(image.flatten().tolist()) for image in mixed]
    assert all(len(values) <= 2 for values in found)
    assert any(len(values) == 2 for values in found)
    assert sum(number in values for number, values in enumerate(found)) >= 6  # a box may cover all of an image


def mixed_by_hand(images, words):
    """The same, pixel by pixel, in Python's integers and doubles."""
    count, _, height, width = images.shape
    reach = max(1, min(height, width) // 8)

    def reflected(place, side):
        place = abs(place)
        return 2 * (side - 1) - place if place >= side else place

    def varied(image, channel, row, column):
        mirrored, down, right = (int(word) for word in words[:3, image])
        row = reflected(row + (down * (2 * reach + 1) >> 32) - reach, height)
        column = reflected(column + (right * (2 * reach + 1) >> 32) - reach, width)
        return images[image, channel, row, width - 1 - column if mirrored >= 1 << 31 else column]

    others = sorted(range(count), key=lambda image: int(words[3, image]))
    found = np.empty_like(images)
    for image, channel, row, column in np.ndindex(images.shape):
        share, across, down = (int(word) / 2**32 for word in words[4:, image])
        half = math.sqrt(share) / 2
        inside = abs((row + 0.5) / height - down) < half and abs((column + 0.5) / width - across) < half
        found[image, channel, row, column] = varied(others[image] if inside else image, channel, row, column)
    return found


def test_cutmix_is_what_the_words_of_the_stream_say():
    images = np.arange(5 * 2 * 16 * 12, dtype=np.float32).reshape(5, 2, 16, 12)
    words = draw(bytes(32), "views", 3 * 35).reshape(3, 7, 5)
    views = with_views(torch.from_numpy(images), 3, "cutmix").numpy().reshape(4, *images.shape)
    assert all(np.array_equal(view, mixed_by_hand(images, one)) for view, one in zip(views[1:], words, strict=True))


def test_views_are_pinned_so_that_parties_of_other_versions_label_the_same_images():
    images = torch.arange(3 * 2 * 16 * 12, dtype=torch.float32).view(3, 2, 16, 12)
    found = with_views(images, 2, "cutmix").numpy().astype("<f4").tobytes()
    assert hashlib.sha256(found).hexdigest() == "c8876b9056d333f9fe4e3a670f573d4c8dd923ce67fd52122e5d1d25be9fdd07"
    images = torch.arange(36, dtype=torch.float32).view(1, 1, 6, 6).repeat(2, 1, 1, 1)
    warped = with_views(images, 2, "affine")[2:, 0, [0, 2, 5], [1, 3, 4]]
    assert warped.numpy() == pytest.approx(
        np.array(
            [
                [0.62693, 15.73365, 33.79927],
                [5.57543, 16.86038, 34.02882],
                [2.42080, 16.61574, 34.77572],
                [0.00000, 14.82718, 34.32282],
            ]
        ),
        abs=1e-3,
    )


@pytest.mark.parametrize("by", ["affine", "cutmix"])
def test_no_view_is_drawn_by_torch(monkeypatch, by):
    def drawn(*arguments, **keywords):
        raise AssertionError("torch drew")

    for name in ("rand", "randint", "randn", "randperm"):
        monkeypatch.setattr(torch, name, drawn)
    assert len(with_views(IMAGES, 2, by)) == 3 * 64


@pytest.mark.parametrize("by", ["affine", "cutmix"])
@pytest.mark.parametrize("side", [1, 2])
def test_the_smallest_images_have_views(by, side):
    images = torch.arange(4 * side * 3.0).view(4, 1, side, 3)
    assert with_views(images, 2, by).shape == (12, 1, side, 3)


@pytest.mark.parametrize("by", ["affine", "cutmix"])
@pytest.mark.parametrize("views", [0, 3])
def test_views_come_after_the_dreams_and_are_the_same_for_everybody(views, by):
    torch.manual_seed(views)
    images = with_views(IMAGES, views, by)
    torch.manual_seed(99)
    assert torch.equal(images, with_views(IMAGES.clone(), views, by))
    assert images.shape == ((1 + views) * 64, 2, 16, 16) and torch.equal(images[:64], IMAGES)
    parts = images.split(64)
    assert all(not torch.equal(one, other) for i, one in enumerate(parts) for other in parts[:i])
