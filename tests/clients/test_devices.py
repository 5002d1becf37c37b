import pytest
import torch

from codream_clients.devices import DeviceError, pick_device


def test_a_named_device_is_taken_and_auto_always_finds_one():
    assert pick_device("cpu") == torch.device("cpu")
    assert pick_device().type in ("cpu", "cuda", "mps")


@pytest.mark.parametrize("name", ["gpu", "meta", "cuda:999"])
def test_a_device_that_is_not_there_is_refused_and_never_replaced(name):
    with pytest.raises(DeviceError, match="auto"):
        pick_device(name)
