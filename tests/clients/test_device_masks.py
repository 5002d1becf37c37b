"""Vectors that are masked on a GPU: bit for bit as on the processor. Without a GPU, Triton's interpreter runs the same.

A call of a kernel takes 0.15 s a stream there, so vectors have few streams, and one program takes many rows.
"""

from __future__ import annotations

import itertools
import json
import os
import secrets
import subprocess
import sys
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

pytest.importorskip("triton")

from triton.runtime.errors import OutOfResources

from codream_clients.dream_learner import DreamLearner
from codream_clients.learning.participant import DreamShare
from codream_clients.masking import kernels
from codream_clients.masking.device import DeviceMasks, OnDevice, why_not
from codream_clients.masking.vector import Vector
from codream_protocols.accelerator import Masked, NotErased
from codream_protocols.charter import Plan
from codream_protocols.client import ClientProtocol, State
from codream_protocols.course import Task
from codream_protocols.encoding import decode
from codream_protocols.errors import AggregationFailed, LocalProtocolError
from codream_protocols.messages import MaskedInput, Refusal
from codream_protocols.packing import packed_size
from codream_protocols.specs import Block, VectorSpec
from codream_protocols.tag import TagKey
from secure_codream.simulation.wire import Federation

CUDA = torch.cuda.is_available()
pytestmark = [
    pytest.mark.skipif(
        not CUDA and os.environ.get("TRITON_INTERPRET") != "1", reason="a GPU is here, and this torch does not use it"
    ),
    pytest.mark.filterwarnings("ignore:overflow encountered:RuntimeWarning"),  # numpy's; a GPU has none
]
DEVICE = torch.device("cuda" if CUDA else "cpu")
ROWS = 1 if CUDA else 128
VECTORS = Path(__file__).parents[1] / "protocols" / "vectors" / "chacha20.json"
SPEC = VectorSpec("update", (Block("count", 3, 70_000.0, "count"), Block("dream", 300, 1.0)))


def masks(said: list[str] | None = None) -> DeviceMasks:
    """Of this machine's GPU, or of Triton's interpreter."""
    return DeviceMasks(DEVICE, (said if said is not None else []).append, rows=ROWS)


@pytest.mark.parametrize(
    "case",
    [case for case in json.loads(VECTORS.read_text())["cases"] if not int(case["nonce"], 16)],
    ids=lambda case: case["name"],
)
def test_the_stream_is_chacha20(case: dict[str, Any]) -> None:
    key, output = bytes.fromhex(case["key"]), bytes.fromhex(case["keystream"])
    blocks = case["counter"] + -(-len(output) // 64)
    found = torch.zeros(16 * blocks, dtype=torch.int32, device=DEVICE)
    words = torch.from_numpy(np.frombuffer(key, dtype="<i4").copy()).to(DEVICE)
    kernels.dither[(1,)](found, words, blocks, LANES=128)
    assert found.cpu().numpy().tobytes()[64 * case["counter"] :][: len(output)] == output


@pytest.mark.parametrize(
    ("bits", "top", "dtype"),
    [(13, 1023, "<f4"), (16, 3276, "<f4"), (21, (1 << 16) - 1, "<f4"), (25, (1 << 20) - 1, "<f8")],
)
def test_a_vector_comes_out_bit_for_bit_as_on_the_processor(bits: int, top: int, dtype: str) -> None:
    said: list[str] = []
    assert masks(said).is_proven(bits, top, np.dtype(dtype)), said


def federation(accelerator: DeviceMasks, **options: Any) -> Federation:
    """Of three, of whom the first has its dreams on the device, and masks them there."""
    first: Any = partial(ClientProtocol, accelerator=accelerator)
    found = Federation(3, client_class=[first, ClientProtocol, ClientProtocol], specs=(SPEC,), steps=1, **options)
    random = found.input_of

    def input_of(member: int, effect: Any) -> Any:
        values: dict[str, Any] = dict(random(member, effect) or {})
        if member == 0:
            values["dream"] = OnDevice(torch.from_numpy(values["dream"].astype(np.float32)).to(DEVICE))
        return values

    found.input_of = input_of
    return found


def trusted(accelerator: DeviceMasks, plan: Plan) -> None:
    """As if a vector of this kind had been proven: the test above does so."""
    accelerator._proven[plan.modulus_bits(0), plan.top(0), np.dtype("<f4")] = True


def test_a_client_that_masks_on_a_device_sums_with_those_that_do_not(monkeypatch: pytest.MonkeyPatch) -> None:
    accelerator, masked = masks(), Vector.masked
    found = federation(accelerator, suite="chacha20")
    trusted(accelerator, found.plan)
    kept, begun, frames = list[torch.Tensor](), Vector.__init__, list[bytes]()

    def watched_begin(self: Vector, *arguments: Any) -> None:
        begun(self, *arguments)
        self._secrets = kept
        kept.append(self._products)

    def watched(self: Vector, keys: Any, tag_key: TagKey) -> Any:
        done = masked(self, keys, tag_key)
        frames.append(done.frame)
        return done

    monkeypatch.setattr(Vector, "masked", watched)
    monkeypatch.setattr(Vector, "__init__", watched_begin)
    assert found.set_up()
    finished = found.step()
    assert finished is not None and found.finish() is not None
    words = [found.vectors[0, member].astype(np.uint32) for member in range(3)]
    expected = decode(found.plan, 0, np.sum(words, axis=0, dtype=np.uint32), 3)
    assert all(np.array_equal(finished.sums[name], total) for name, total in expected.items())
    assert frames == [item.frames[0] for item in found.sent if item.member == 0 and item.kind is MaskedInput]
    assert len(kept) == 13 and not any(tensor.any() for tensor in kept)  # keys, and what tells of the vector


def test_a_device_that_gives_another_vector_is_not_trusted_and_the_processor_masks(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def wrong(self: Vector, keys: Any, tag_key: TagKey) -> Masked:
        return Masked(bytes(packed_size(self._count, self._bits)), 0, 4)

    monkeypatch.setattr(Vector, "masked", wrong)
    monkeypatch.setattr(Vector, "give_numbers", lambda self, tensor, *rest: None)
    said: list[str] = []
    found = federation(masks(said), suite="chacha20")
    assert found.set_up() and found.step() is not None and found.finish() is not None
    assert len(said) == 1 and "another vector came out than on the processor" in said[0]


@pytest.mark.parametrize(
    "error",
    [torch.OutOfMemoryError("no memory left"), OSError("no space left"), OutOfResources(2, 1, "shared memory left")],
    ids=lambda error: type(error).__name__,
)
def test_a_device_that_fails_before_keys_are_taken_leaves_the_vector_to_the_processor(
    error: Exception, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where the compiler of its programs does, or finds no room on the disk."""

    def full(*arguments: Any) -> None:
        raise error

    said: list[str] = []
    accelerator = masks(said)
    found = federation(accelerator, suite="chacha20")
    trusted(accelerator, found.plan)
    monkeypatch.setattr(Vector, "give_numbers", full)
    assert found.set_up() and found.step() is not None and found.finish() is not None
    assert len(said) == 1 and " left" in said[0]


@pytest.mark.parametrize(("fails", "after"), [("give_words", 0), ("_secret", 2), ("_secret", 4), ("_frame", 0)])
def test_a_device_that_fails_keeps_nothing(fails: str, after: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Once the keys are taken it costs the client its epoch, too: nothing else may be masked by them."""
    accelerator, works, begun = masks(), getattr(Vector, fails), Vector.__init__
    kept, calls = list[torch.Tensor](), itertools.count()
    found = federation(accelerator, suite="chacha20")
    trusted(accelerator, found.plan)
    assert found.set_up()

    def watched(self: Vector, *arguments: Any) -> None:
        begun(self, *arguments)
        self._secrets = kept
        kept.append(self._products)

    def failing(*arguments: Any) -> Any:
        done = works(*arguments)
        if next(calls) == after:
            raise torch.OutOfMemoryError("no memory left")
        return done

    monkeypatch.setattr(Vector, "__init__", watched)
    monkeypatch.setattr(Vector, fails, failing)
    client = found.clients[0]
    values = {"count": np.ones(3), "dream": OnDevice(torch.ones(300, device=DEVICE))}
    sent, *rest = client.provide(found.plan.digest, 0, values)
    on_the_processor = fails == "give_words"
    assert isinstance(sent.message, MaskedInput if on_the_processor else Refusal)
    assert not rest if on_the_processor else "its masks used up" in rest[0].reason
    assert len(kept) > 1 and not any(tensor.any() for tensor in kept)


def test_a_device_that_cannot_erase_what_it_was_given_ends_the_client(monkeypatch: pytest.MonkeyPatch) -> None:
    accelerator = masks()
    found = federation(accelerator, suite="chacha20")
    trusted(accelerator, found.plan)
    assert found.set_up()

    def dead(*arguments: Any) -> None:
        raise RuntimeError("an illegal memory access was encountered")

    monkeypatch.setattr(Vector, "_launch", dead)
    monkeypatch.setattr(torch.Tensor, "zero_", dead)
    values = {"count": np.ones(3), "dream": OnDevice(torch.ones(300, device=DEVICE))}
    with pytest.raises(AggregationFailed, match=r"NotErased.*its masks used up.*start this client again") as caught:
        found.clients[0].provide(found.plan.digest, 0, values)
    assert "illegal memory access" in str(caught.value.__cause__) and found.clients[0].plan is None


def test_what_lies_elsewhere_is_erased_although_the_device_does_nothing_any_more() -> None:
    def gone() -> None:
        raise RuntimeError("an illegal memory access was encountered")

    vector, here = Vector(DEVICE, 300, 21, ROWS), torch.ones(8)
    vector._secrets += [SimpleNamespace(zero_=gone), here]  # type: ignore[list-item]
    with pytest.raises(NotErased, match="illegal memory access"):
        vector.forget()
    assert not here.any()


def test_what_does_not_fit_is_refused_before_any_key_is_taken() -> None:
    accelerator = masks()
    found = federation(accelerator, suite="chacha20")
    trusted(accelerator, found.plan)
    assert found.set_up()
    short, whole = (OnDevice(torch.zeros(length, device=DEVICE)) for length in (299, 300))
    missing: dict[str, Any] = {"count": np.zeros(3), "dream": short}
    words: dict[str, Any] = {"count": ["one", "two", "three"], "dream": whole}
    client = found.clients[0]
    with pytest.raises(LocalProtocolError, match="299 values"):
        client.provide(found.plan.digest, 0, missing)
    with pytest.raises(LocalProtocolError, match="cannot be read"):
        client.provide(found.plan.digest, 0, words)
    assert client.state is State.COMPUTING and client._epoch.keys._root_step == 0


@pytest.mark.parametrize("case", ["suite", "noise", "nothing", "a count"])
def test_what_is_not_for_a_device_is_masked_on_the_processor(case: str) -> None:
    spec = SPEC if case != "noise" else VectorSpec("update", (Block("dream", 300, 1.0),)).with_noise(1.0, 2.0, 2)
    plan = Federation(3, specs=(spec,), suite="aes-256-ctr" if case == "suite" else "chacha20").plan
    values: dict[str, Any] = {block.name: np.zeros(block.length) for block in spec.blocks}
    if case != "nothing":
        name = "count" if case == "a count" else "dream"
        values[name] = OnDevice(torch.zeros(len(values[name]), device=DEVICE))
    accelerator = masks()
    trusted(accelerator, plan)
    assert accelerator.ready(plan, 0, values, secrets.token_bytes) is None


def test_why_masks_are_not_made_on_a_gpu_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    cuda = torch.device("cuda")
    assert why_not(cuda, "chacha20") is None
    assert "numbers lie on cpu" in (why_not(torch.device("cpu"), "chacha20") or "")
    assert "suite is aes-256-ctr" in (why_not(cuda, "aes-256-ctr") or "")
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert "triton is missing" in (why_not(cuda, "chacha20") or "")


def test_numbers_on_a_device_are_an_array_for_who_asks() -> None:
    numbers = OnDevice(torch.tensor([[1.5, 2.5]], device=DEVICE))
    assert np.asarray(numbers).tolist() == [[1.5, 2.5]] and numbers.dtype == np.float32
    assert np.asarray(numbers, dtype=np.float64).dtype == np.float64


@pytest.mark.exhaustive
def test_what_is_compiled_for_a_gpu_makes_streams_without_touching_memory() -> None:
    """As docs/decisions/0017-masks-on-a-gpu.md says; the compiler needs no card, and seconds."""
    root = Path(__file__).parents[2]
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    command = [sys.executable, str(root / "benchmarks" / "gpu_masks.py"), "--instructions", "90"]
    said = subprocess.run(command, env=environment, capture_output=True, text=True, check=True).stdout
    assert said.startswith("inner loop: 99 instructions, 0 of them touch memory"), said


def test_an_update_is_handed_over_where_it_lies() -> None:
    moved = torch.tensor([0.5, -2.0], device=DEVICE)
    fake: Any = SimpleNamespace(classes=2, dream_update=lambda given, extra, first: DreamShare(moved, 0.5))
    task, spec = (
        Task("update", {"dreams": np.zeros((2, 1), np.float32)}),
        VectorSpec("update", (Block("dreams", 2, 1.0),)),
    )
    there = DreamLearner(fake, weight=0.5, hand_over=OnDevice).compute(task, spec)
    here = DreamLearner(fake, weight=0.5).compute(task, spec)
    assert isinstance(there["dreams"], OnDevice) and there["dreams"].tensor.device.type == DEVICE.type
    assert isinstance(here["dreams"], np.ndarray) and here["dreams"].tolist() == [0.25, -0.5]
    assert np.asarray(there["dreams"]).tolist() == here["dreams"].tolist() and here["clipped"].tolist() == [0.25]
