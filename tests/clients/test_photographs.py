"""The public photographs: what comes, and that whoever decodes other pixels is refused."""

import sys

import numpy as np
import pytest

from codream_clients.data.photographs import photographs_digest, public_photographs
from codream_protocols.errors import LocalProtocolError
from codream_protocols.starts import start_rule


def test_two_photographs_in_colour_always_alike():
    found, again = public_photographs(), public_photographs()
    assert [(image.shape, image.dtype) for image in found] == [((427, 640, 3), np.dtype(np.uint8))] * 2
    assert photographs_digest(found) == photographs_digest(again)
    assert all(60 < image.mean() < 200 and image.std() > 30 for image in found)


def test_a_charter_s_digest_is_checked():
    found = public_photographs()
    assert len(public_photographs(photographs_digest(found))) == 2
    one_level_off = found[0].copy()
    one_level_off[0, 0, 0] ^= 1
    with pytest.raises(LocalProtocolError, match=r"found photographs of digest .*; allowed: digest .*Pillow"):
        public_photographs(photographs_digest((one_level_off, found[1])))


@pytest.mark.parametrize("missing", ["sklearn.datasets", "PIL"])
def test_what_is_missing_is_named_with_the_extra_that_brings_it(monkeypatch, missing):
    monkeypatch.setitem(sys.modules, missing, None)
    with pytest.raises(LocalProtocolError, match=r"secure-codream\[client\]"):
        public_photographs()


def test_crops_show_many_places_and_are_rarely_flat():
    crops = start_rule("photos", public_photographs())(bytes(32), 300, (3, 32, 32))
    assert len({crop.tobytes() for crop in crops}) == 300
    assert np.median(crops.std(axis=(1, 2, 3))) > 0.3
