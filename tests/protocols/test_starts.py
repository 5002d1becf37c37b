"""Start images: the same bytes in every process, pinned; and they look like what their rule says."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
from cryptography.hazmat.primitives.ciphers import Cipher
from cryptography.hazmat.primitives.ciphers.algorithms import AES
from cryptography.hazmat.primitives.ciphers.modes import CTR

from codream_protocols import starts
from codream_protocols.errors import LocalProtocolError
from codream_protocols.keyschedule import digest
from codream_protocols.starts import PICTURES, Floats32, Pixels, Shape, StartRule, start_rule

SEED = bytes(range(32))
OTHER_SEED = bytes(range(1, 33))
SHAPES: tuple[Shape, ...] = ((1, 8, 8), (1, 28, 28), (3, 32, 32), (2, 5, 90), (4, 1, 1))
DRAWN = ("strokes", "shapes", "photos")
EVERY_RULE = pytest.mark.parametrize("name", starts.START_NAMES)


def photographs() -> tuple[Pixels, ...]:
    """One in colour, one grey, both of arbitrary pixels."""
    colour = starts.draw(SEED, "test colour", 96 * 128 * 3).reshape(96, 128, 3) >> 24
    grey = starts.draw(SEED, "test grey", 120 * 100).reshape(120, 100) >> 24
    return colour.astype(np.uint8), grey.astype(np.uint8)


def rule(name: str) -> StartRule:
    return start_rule(name, photographs() if name == "photos" else ())


def sha256(images: Floats32) -> str:
    return hashlib.sha256(images.astype("<f4").tobytes()).hexdigest()


# -- the same bytes everywhere ------------------------

PINS = {
    "noise": [
        "6e8e361ccd36320b7e57c4165a5e215d",
        "b236d8d582edb69a352e03707c408dfc",
        "94f7b24a84b7466d5a9d3033a98189ab",
        "a88aeadfb5c91d92d43ae5dd0d41641f",
        "f2f3f48c0dd71f10a47abf5771ea486a",
    ],
    "strokes": [
        "e8acffaed60155f718dc6d1c7c663d04",
        "e7b99e98f5485e30c5eb05279e4e0d32",
        "b9ff489066e3cb11115f53f0a8be922d",
        "d7c287e96dba061826cfca6ddb5319a3",
        "a9f7dc47078e8b393a51f890aa7a204b",
    ],
    "shapes": [
        "770966b615c6e2723920f512d544193f",
        "3a450f42b6c1577a698abee1dcd7b5dd",
        "8102a246efca9ca0f856755f33f63c04",
        "2ff416d7305e6c386c4dfecb3f2a7d9b",
        "4afd4909b493f0e9ac2289d582a815b9",
    ],
    "photos": [
        "f24bccedeea8090491a9476c8ea32e57",
        "54fbcfc2a489231bf1b087bccced7dec",
        "b33d1e890f89ef939ca744e83f071c3f",
        "fc40307cc9cd7c0e436489cf392a3649",
        "04df2876d05ed1a707e167e559cd3c5b",
    ],
}


@EVERY_RULE
def test_small_outputs_are_pinned(name: str) -> None:
    # They hang on the protocol's version too, which is part of every key: a new version has new pins.
    assert [sha256(rule(name)(SEED, 5, shape))[:32] for shape in SHAPES] == PINS[name]


def test_two_processes_make_the_same_bytes() -> None:
    command = f"import sys; sys.path.insert(0, {str(Path(__file__).parent)!r}); import test_starts as t; t.print_all()"
    printed = [
        subprocess.run(
            [sys.executable, "-c", command],
            env={**os.environ, "PYTHONHASHSEED": hash_seed, "OMP_NUM_THREADS": threads},
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        for hash_seed, threads in (("1", "1"), ("2", "2"))
    ]
    assert printed[0] == printed[1] and len(printed[0].split()) == len(starts.START_NAMES) * len(SHAPES)


def print_all() -> None:
    """What a process of the test above prints."""
    for name in starts.START_NAMES:
        for shape in SHAPES:
            print(sha256(rule(name)(SEED, 70, shape)))


@EVERY_RULE
@pytest.mark.parametrize("shape", SHAPES)
def test_type_shape_and_range(name: str, shape: Shape) -> None:
    images = rule(name)(SEED, 9, shape)
    assert starts.check_start(images, 9, shape) is images
    assert np.abs(images).max() <= (6 if name == "noise" else 1)
    assert rule(name)(SEED, 0, shape).shape == (0, *shape)


@EVERY_RULE
def test_another_seed_gives_other_images_and_those_of_a_batch_differ(name: str) -> None:
    images, others = (rule(name)(seed, 200, (1, 28, 28)) for seed in (SEED, OTHER_SEED))
    assert not (images == others).all(axis=(1, 2, 3)).any()
    # Of small photographs there are few crops by the largest factor.
    assert len({image.tobytes() for image in (*images, *others)}) >= (390 if name == "photos" else 400)


@EVERY_RULE
@pytest.mark.parametrize("shape", [(1, 28, 28), (1, 8, 8)])
def test_a_shorter_batch_is_the_beginning_of_a_longer_one(name: str, shape: Shape) -> None:
    longer = rule(name)(SEED, 1100, shape)  # more than is drawn at a time
    assert (longer[:90] == rule(name)(SEED, 90, shape)).all()


def in_counter_mode(label: str, count: int) -> bytes:
    """So many bytes of the public stream of a label."""
    return Cipher(AES(digest(label, SEED)), CTR(bytes(16))).encryptor().update(bytes(count))


def test_the_stream_is_aes_in_counter_mode_under_the_labelled_key_and_can_be_entered_anywhere() -> None:
    expected = np.frombuffer(in_counter_mode("a label", 4000), dtype="<u4")
    assert (starts.draw(SEED, "a label", 1000) == expected).all()
    for skip in (1, 4, 7, 998):
        assert (starts.draw(SEED, "a label", 1000 - skip, skip) == expected[skip:]).all()


# -- noise --------------------------------------------


def test_noise_is_close_to_standard_normal() -> None:
    values = starts.noise(SEED, 1000, (1, 28, 28)).astype(np.float64).reshape(-1)
    n = len(values)
    assert abs(values.mean()) < 4 / n**0.5
    assert abs(values.var() - 1) < 4 * (1.9 / n) ** 0.5  # Irwin-Hall: the fourth moment is 2.9
    assert abs((values**4).mean() - 2.9) < 0.05
    assert abs((np.abs(values) < 1).mean() - 0.6827) < 0.005
    assert abs((values[1:] * values[:-1]).mean()) < 4 / n**0.5


def test_a_value_of_noise_is_the_exact_sum_of_twelve_uniforms() -> None:
    values = starts.noise(SEED, 2, (1, 3, 3)).reshape(-1)
    stream = np.frombuffer(in_counter_mode("start noise", 2 * 12 * 18), dtype="<u2")
    for value, uniforms in zip(values, stream.reshape(18, 12), strict=True):
        assert Fraction(float(value)) == Fraction(sum(map(int, uniforms)) - 6 * 65535, 65536)


# -- drawn pictures -----------------------------------


@pytest.mark.parametrize("name", DRAWN)
def test_levels_are_the_256_of_a_pixel_standardised(name: str) -> None:
    levels = {float((np.float32(v) / np.float32(255) - np.float32(0.5)) / np.float32(0.5)) for v in range(256)}
    assert {float(value) for value in rule(name)(SEED, 50, (1, 28, 28)).reshape(-1)} <= levels


def test_the_table_of_directions_is_a_circle() -> None:
    angles = np.arange(32) * np.pi / 16
    assert (np.round(1024 * np.cos(angles)) == starts._COSINES).all()
    assert (np.round(1024 * np.sin(angles)) == starts._SINES).all()


@pytest.mark.parametrize("side", [8, 28, 64, 128])
def test_strokes_are_thin_bright_lines_near_the_middle(side: int) -> None:
    images = starts.strokes(SEED, 200, (1, side, side))
    ink = (images + 1) / 2
    assert ((ink > 0.5).mean(axis=(1, 2, 3)) < 0.5).all()  # dark prevails
    assert 0.06 < ink.mean() < 0.25  # MNIST's: 0.13
    assert (ink.max(axis=(1, 2, 3)) > 0.55).all()
    border = np.ones((side, side), dtype=bool)
    border[1:-1, 1:-1] = False
    assert ink[:, 0, border].mean() < 0.05


def test_strokes_in_colour_are_brighter_than_their_background() -> None:
    images = starts.strokes(SEED, 100, (3, 32, 32))
    background = images[:, :, 0, 0]
    assert (images.max(axis=(2, 3)) > background + 0.2).all() and (images.min(axis=(2, 3)) == background).all()
    assert len(np.unique(background)) > 50


def test_shapes_differ_in_colour_and_leave_some_background() -> None:
    images = starts.shapes(SEED, 300, (3, 32, 32))
    assert np.abs(images[:, 0] - images[:, 1]).mean() > 0.3
    assert 0.3 < images.std() < 0.8 and abs(images.mean()) < 0.1
    assert (images.std(axis=(1, 2, 3)) > 0.05).all()


def test_a_photograph_of_the_image_s_size_comes_as_it_is_or_mirrored() -> None:
    photograph = photographs()[0][:8, :8]
    as_it_is = ((photograph.transpose(2, 0, 1) / np.float32(255) - np.float32(0.5)) / np.float32(0.5)).tobytes()
    crops = starts.photo_crops(SEED, 40, (3, 8, 8), (photograph,))
    assert {crop.tobytes() for crop in crops} | {as_it_is} == {crop.tobytes() for crop in crops}
    assert {crop[:, :, ::-1].tobytes() for crop in crops} == {crop.tobytes() for crop in crops}
    assert len({crop.tobytes() for crop in crops}) == 2


def test_a_crop_is_the_rounded_mean_of_blocks() -> None:
    photograph = photographs()[1][:8, :8]
    crops = {crop.tobytes() for crop in starts.photo_crops(SEED, 3000, (1, 4, 4), (photograph,))}
    mean = np.floor(photograph.reshape(4, 2, 4, 2).mean(axis=(1, 3)) + 0.5).astype(int)
    for expected in (mean, mean[:, ::-1]):
        assert starts._LEVELS[expected].tobytes() in crops
    assert len(crops) == 2 + 2 * 25  # once by factor 2, 25 places by factor 1; each also mirrored


@pytest.mark.parametrize(
    ("channels", "expected"), [(1, [[77 * 200 + 150 * 100 + 29 * 50 >> 8]]), (3, [[200], [100], [50]])]
)
def test_channels_of_a_crop(channels: int, expected: list[list[int]]) -> None:
    photograph = np.full((9, 9, 3), (200, 100, 50), dtype=np.uint8)
    crops = starts.photo_crops(SEED, 3, (channels, 4, 4), (photograph,)).reshape(3, channels, 16)
    assert (crops == starts._LEVELS[np.array(expected)]).all()


def test_the_sum_of_the_largest_block_of_white_does_not_wrap() -> None:
    white = np.full((starts.MAX_PHOTOGRAPH_SIDE, starts.MAX_PHOTOGRAPH_SIDE), 255, dtype=np.uint8)
    assert (starts.photo_crops(SEED, 200, (1, 1, 1), (white,)) == 1).all()
    tables = (starts._summed(white[None].astype(np.uint32)),)
    assert int(tables[0][0, -1, -1]) == 255 * starts.MAX_PHOTOGRAPH_SIDE**2


def test_the_digest_of_photographs_sees_pixels_shapes_and_order() -> None:
    colour, grey = photographs()
    changed = colour.copy()
    changed[3, 4, 1] ^= 1
    variants: list[tuple[Pixels, ...]] = [
        (colour, grey),
        (grey, colour),
        (changed, grey),
        (colour,),
        (colour, grey.reshape(100, 120)),
    ]
    assert len({starts.photographs_digest(variant) for variant in variants}) == len(variants)
    assert starts.photographs_digest((np.asfortranarray(colour), grey)) == starts.photographs_digest((colour, grey))


# -- refusals -----------------------------------------


@EVERY_RULE
@pytest.mark.parametrize(
    ("count", "shape", "words"),
    [
        (-1, (1, 8, 8), "found -1 start images; allowed: 0 to 1000000"),
        (1_000_001, (1, 8, 8), "found 1000001 start images"),
        (1, (0, 8, 8), "found images of 0 channels; allowed: 1 to 16"),
        (1, (17, 8, 8), "found images of 17 channels"),
        (1, (1, 1025, 8), "found images of 1025 rows; allowed: 1 to 1024"),
        (1, (1, 8, 0), "found images of 0 columns"),
        (1_000_000, (16, 1024, 1024), "values in all start images"),
    ],
)
def test_sizes_outside_the_limits_are_refused(name: str, count: int, shape: Shape, words: str) -> None:
    with pytest.raises(LocalProtocolError, match=words):
        rule(name)(SEED, count, shape)


def test_a_shape_of_two_numbers_is_refused() -> None:
    with pytest.raises(LocalProtocolError, match="channels, height, width"):
        starts.noise(SEED, 1, (8, 8))


@EVERY_RULE
@pytest.mark.parametrize("count", [0, 1])
def test_a_seed_of_another_length_is_refused(name: str, count: int) -> None:
    with pytest.raises(LocalProtocolError, match="found a start seed of 31 bytes; allowed: 32 bytes"):
        rule(name)(SEED[1:], count, (1, 8, 8))


def test_a_stream_of_too_many_or_negative_words_is_refused() -> None:
    for count, skip in ((-1, 0), (1, -1), (starts.MAX_WORDS + 1, 0)):
        with pytest.raises(LocalProtocolError, match="words from word"):
            starts.draw(SEED, "a label", count, skip)


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: start_rule("dots"), "found start 'dots'; allowed: noise or strokes or shapes or photos"),
        (lambda: start_rule("photos"), "found no photograph; allowed: at least one"),
        (lambda: start_rule("noise", photographs()), "found 2 photographs for start 'noise'"),
        (lambda: start_rule("photos", (np.zeros((9, 9), dtype=np.float32),)), "photograph 0 of float32"),
        (lambda: start_rule("photos", (np.zeros((9, 9, 4), dtype=np.uint8),)), r"shape \(9, 9, 4\)"),
        (lambda: start_rule("photos", (np.zeros((9, 5000), dtype=np.uint8),)), "sides of 1 to 4096 pixels"),
        (lambda: rule("photos")(SEED, 1, (1, 97, 9)), "photograph 0 of 96 x 128 pixels; allowed: at least 97 x 9"),
    ],
)
def test_names_and_photographs_that_do_not_fit_are_refused(make: Callable[[], object], words: str) -> None:
    with pytest.raises(LocalProtocolError, match=words):
        make()


GOOD = np.zeros((2, 1, 4, 4), dtype=np.float32)


@pytest.mark.parametrize(
    ("images", "words"),
    [
        (GOOD.tolist(), "of type list"),
        (GOOD.astype(np.float64), "of float64; allowed: float32"),
        (GOOD[:1], r"shape \(1, 1, 4, 4\); allowed: shape \(2, 1, 4, 4\)"),
        (np.full_like(GOOD, np.nan), "not finite"),
        (np.full_like(GOOD, -np.inf), "not finite"),
    ],
)
def test_images_of_an_own_rule_that_do_not_fit_are_refused(images: object, words: str) -> None:
    with pytest.raises(LocalProtocolError, match=words):
        starts.check_start(images, 2, (1, 4, 4))


def test_images_of_an_own_rule_are_not_clamped() -> None:
    large = np.full_like(GOOD, 1e30)
    assert starts.check_start(large, 2, (1, 4, 4)) is large and (large == np.float32(1e30)).all()


# -- on the scale of the clients' images ------------------------


@pytest.mark.parametrize("name", DRAWN)
def test_pictures_are_standardised_as_the_images_that_they_stand_for(name: str) -> None:
    mean, std = (0.1307, 0.4822, 0.4465), (0.3081, 0.2935, 0.2616)
    plain = rule(name)(SEED, 4, (3, 16, 16)).astype(np.float64)
    found = starts.standardised(rule(name), mean, std, PICTURES[name])(SEED, 4, (3, 16, 16))
    assert starts.check_start(found, 4, (3, 16, 16)) is found
    for channel in range(3):
        pixels = (plain[:, channel] + 1) / 2
        np.testing.assert_allclose(found[:, channel], (pixels - mean[channel]) / std[channel], atol=2e-6)
    one = starts.standardised(rule(name), (0.5,), (0.5,), PICTURES[name])(SEED, 4, (3, 16, 16))
    np.testing.assert_array_equal(one, plain)  # the scale that pictures have anyway


@pytest.mark.parametrize("std", [0.02, 0.09, 0.3])
@pytest.mark.parametrize("shape", [(1, 8, 8), (1, 28, 28), (3, 32, 32)])
@pytest.mark.parametrize("name", ["strokes", "shapes"])
def test_standardised_pictures_have_no_more_contrast_than_standardised_images(
    name: str, shape: Shape, std: float
) -> None:
    """Control: from black to white they would have up to 16 times that of images whose deviation is small."""
    images = starts.standardised(rule(name), (0.3,), (std,), PICTURES[name])(SEED, 50, shape)
    contrast = images.std(axis=(1, 2, 3)).mean()
    assert contrast < 1.3
    assert std > 0.2 or contrast > 0.7
    plain = rule(name)(SEED, 50, shape).std(axis=(1, 2, 3)).mean() / 2 / std
    assert plain > 1.5 or std > 0.2


def test_the_bytes_of_standardised_pictures_are_pinned() -> None:
    images = starts.standardised(rule("strokes"), (0.1307,), (0.3081,), PICTURES["strokes"])(SEED, 3, (1, 28, 28))
    assert sha256(images)[:32] == "645e533eafc136f6ca3ef21b7e234e73"
