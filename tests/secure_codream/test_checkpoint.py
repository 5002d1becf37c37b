"""A client's model on disk: it says what it is, comes back whole, and nothing that is none gets into a model."""

from __future__ import annotations

import hashlib
import json
import os
import random
import signal
import subprocess
import sys
from collections.abc import Callable
from itertools import count
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
import safetensors.torch
import torch
from msgspec.structs import replace

from codream_clients.data.datasets import LabelledImages, load_digits_data
from codream_clients.learning.judge import Judge
from codream_clients.learning.participant import Metrics
from codream_clients.learning.training import predict_logits
from codream_clients.models.zoo import FRONTS, NETWORKS, ZOO, build
from secure_codream.configuration.client import ClientConfig
from secure_codream.configuration.federation import FederationConfig
from secure_codream.deployment.checkpoint import CheckpointError, checkpoint_bytes, go_on, read_checkpoint
from secure_codream.deployment.description import Description, Figures, Standardisation, describe
from secure_codream.deployment.files import BEST, MODEL, Appended, EventLog
from secure_codream.deployment.outputs import Outputs
from tests.secure_codream.models import DESCRIBED, small_model, write_checkpoint


def same(one: torch.nn.Module, other: torch.nn.Module) -> bool:
    pairs = zip(one.state_dict().values(), other.state_dict().values(), strict=True)
    return all(torch.equal(a, b) for a, b in pairs)


# -- what comes back ---------------------------------------------


@pytest.mark.parametrize("name", [*ZOO, *NETWORKS, *FRONTS, "resnet8_gn"])
def test_weights_of_every_model_come_back(tmp_path: Path, name: str) -> None:
    def made(seed: int) -> torch.nn.Module:
        return build(name, channels=3, size=32, classes=10, seed=seed)

    path = tmp_path / MODEL
    write_checkpoint(path, made(1), replace(DESCRIBED, model=name, shape=(3, 32, 32)))
    taken = made(2)
    assert not same(taken, made(1))
    read_checkpoint(path).put_into(taken)
    assert same(taken, made(1))
    assert [one.name for one in tmp_path.iterdir()] == [MODEL]


def test_a_description_comes_back_word_for_word(tmp_path: Path) -> None:
    whole = replace(
        DESCRIBED,
        learnt=7,
        class_names=tuple(f"Klasse {number} ≥ ☠" for number in range(10)),
        standardisation=Standardisation((0.1307,), (0.3081,)),
        resized=True,
        figures=Figures(0.875, None),
    )
    write_checkpoint(tmp_path / MODEL, small_model(), whole)
    assert read_checkpoint(tmp_path / MODEL).description == whole


def test_one_model_has_one_file(tmp_path: Path) -> None:
    assert checkpoint_bytes(small_model(), DESCRIBED) == checkpoint_bytes(small_model(), DESCRIBED)
    assert checkpoint_bytes(small_model(), DESCRIBED) != checkpoint_bytes(small_model(1), DESCRIBED)


def test_weights_that_a_model_shares_come_back_shared(tmp_path: Path) -> None:
    def tied(seed: int) -> torch.nn.Module:
        torch.manual_seed(seed)
        first, second = torch.nn.Linear(4, 4), torch.nn.Linear(4, 4)
        second.weight = first.weight
        return torch.nn.Sequential(first, second)

    write_checkpoint(tmp_path / MODEL, tied(1), DESCRIBED)
    taken = tied(2)
    read_checkpoint(tmp_path / MODEL).put_into(taken)
    assert same(taken, tied(1)) and taken[0].weight is taken[1].weight  # type: ignore[index]


def test_a_state_that_is_not_of_tensors_is_refused() -> None:
    class Odd(torch.nn.Linear):
        def get_extra_state(self) -> Any:
            return {"a": 1}

        def set_extra_state(self, state: Any) -> None: ...

    with pytest.raises(CheckpointError, match="_extra_state, no tensors"):
        checkpoint_bytes(Odd(2, 2), DESCRIBED)


def test_other_programs_read_the_file(tmp_path: Path) -> None:
    """It is plain safetensors; what it says of itself is one text of JSON."""
    write_checkpoint(tmp_path / MODEL, small_model(), DESCRIBED)
    with safetensors.safe_open(tmp_path / MODEL, framework="numpy") as file:
        assert set(file.keys()) == set(small_model().state_dict())
        assert json.loads(file.metadata()["secure_codream"])["model"] == "mlp"


# -- what a client's file says ---------------------------------------------


def described(*, private: bool, names: bool = False, images_names: bool = False, **client: Any) -> Description:
    tables: dict[str, Any] = {"task": {"shape": (1, 8, 8), "classes": 10}}
    if names:
        tables["task"]["class_names"] = tuple("abcdefghij")
    if private:
        tables |= {"privacy": {"epsilon": 4.0, "delta": 1e-3}, "learning": {"own_weight": 0.0}}
    images, _ = load_digits_data(0)
    if images_names:
        from dataclasses import replace as changed

        images = changed(images, class_names=tuple("klmnopqrst"))
    config = ClientConfig(name="alice", model=client.pop("model", "mlp"), **client)
    federation = FederationConfig.model_validate(tables)
    return describe(config, federation, images, charter=bytes(32), model=config.model, resized=False)


def test_a_clients_file_says_scale_shape_classes_and_charter() -> None:
    found = described(private=False, names=True)
    assert found.standardisation == Standardisation((0.3053,), (0.3761,))
    assert (found.shape, found.classes, found.class_names) == ((1, 8, 8), 10, tuple("abcdefghij"))
    assert (found.charter, found.client, found.model, found.code) == ("00" * 32, "alice", "mlp", None)


def test_names_of_folders_are_told_unless_records_are_private() -> None:
    assert described(private=False, images_names=True).class_names == tuple("klmnopqrst")
    assert described(private=True, images_names=True).class_names is None
    assert described(private=True, names=True).class_names == tuple("abcdefghij")  # those of the charter are public


def test_own_code_is_told_with_the_digest_of_its_source(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "my_networks.py").write_text("def build(channels, size, classes): ...\n")
    found = described(private=False, model="my_networks:build")
    assert found.code == hashlib.sha256((tmp_path / "my_networks.py").read_bytes()).hexdigest()
    assert found.own_code == "my_networks:build"


@pytest.mark.parametrize("tells", [True, False])
def test_figures_are_in_the_file_only_where_they_are_told(tmp_path: Path, tells: bool) -> None:
    with (tmp_path / "metrics.jsonl").open("a") as file:
        outputs = Outputs(tmp_path, EventLog(file), sums=False, tells=tells, failed=lambda name, error: None)
        outputs.take(small_model(), DESCRIBED, 0)
        outputs.learnt = 2
        outputs.keep(Metrics(rounds=2, accuracy=0.75, train_accuracy=1.0, distil_loss=0.5))
    found = read_checkpoint(tmp_path / MODEL).description
    assert found.learnt == 2 and found.figures == (Figures(0.75, 1.0) if tells else None)


# -- going on with it ---------------------------------------------


def test_a_client_goes_on_with_its_own_model(tmp_path: Path) -> None:
    write_checkpoint(tmp_path / MODEL, small_model(1), replace(DESCRIBED, learnt=3))
    taken = small_model(2)
    assert go_on(tmp_path / MODEL, taken, DESCRIBED).learnt == 3
    assert same(taken, small_model(1))


SCALED = replace(DESCRIBED, standardisation=Standardisation((0.5,), (0.5,)))
NAMED = replace(DESCRIBED, class_names=tuple("abcdefghij"))
OWN = replace(DESCRIBED, model="mine:build", code="1" * 64)


@pytest.mark.parametrize(
    ("then", "now", "said"),
    [
        (replace(DESCRIBED, charter="cd" * 32), DESCRIBED, r"trained under charter cdcd\S*, this federation's is abab"),
        (SCALED, replace(SCALED, standardisation=Standardisation((0.1,), (0.5,))), "the scale of images"),
        (SCALED, DESCRIBED, r"found the scale of images Standardisation\(\S+ \S+ in it; this client has none"),
        (DESCRIBED, SCALED, "found the scale of images none in it"),
        (NAMED, replace(DESCRIBED, class_names=tuple("abcdefghji")), "found the names of classes "),
        (NAMED, DESCRIBED, "found the names of classes .*this client has none"),
        (DESCRIBED, replace(DESCRIBED, model="mlp_gn"), "found the model 'mlp' in it; this client has 'mlp_gn'"),
        (DESCRIBED, replace(DESCRIBED, model=None), "found the model 'mlp' in it; this client has none"),
        (OWN, replace(OWN, code="2" * 64), "found the SHA-256 of its source '1111.* in it; this client has '2222"),
        (OWN, replace(OWN, code=None), "found the SHA-256 of its source '1111.* in it; this client has none"),
        (DESCRIBED, replace(DESCRIBED, shape=(1, 16, 16)), r"found the shape of images \(1, 8, 8\) in it; this"),
    ],
    ids=[
        "charter",
        "scale",
        "scale gone",
        "scale new",
        "names in another order",
        "names gone",
        "model",
        "a model that a script hands over",
        "source",
        "source gone",
        "shape",
    ],
)
def test_a_client_does_not_go_on_with_what_means_something_else(
    tmp_path: Path, then: Description, now: Description, said: str
) -> None:
    write_checkpoint(tmp_path / MODEL, small_model(1), then)
    taken = small_model(2)
    with pytest.raises(CheckpointError, match=rf"{said}.*move it away to train anew"):
        go_on(tmp_path / MODEL, taken, now)
    assert same(taken, small_model(2))
    assert go_on(tmp_path / MODEL, taken, then).learnt == 0  # the control: what it was


# -- what is no model, and is refused in words ---------------------------------------------


class Evil:
    """Unpickled, it would leave a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.path,)


def with_header(header: Any, rest: bytes = b"") -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text + rest


def saying(**changed: Any) -> dict[str, str]:
    """The header's table of a description with other values."""
    words = {**msgspec.to_builtins(DESCRIBED), **changed}
    return {"secure_codream": json.dumps({key: value for key, value in words.items() if value is not ...})}


def one_tensor(**changed: Any) -> dict[str, Any]:
    return {"__metadata__": saying(), "0": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8], **changed}}


NOT_FINITE = with_header(one_tensor(), b"\x00\x00\xc0\x7f" * 2)
REFUSED: dict[str, bytes] = (
    {
        "empty": b"",
        "seven bytes": b"1234567",
        "a header of nothing": with_header(b""),
        "a header longer than the file": (1 << 40).to_bytes(8, "little") + b"{}",
        "a header longer than allowed": (9 << 20).to_bytes(8, "little") + b" " * (9 << 20),
        "no JSON": with_header(b"{]"),
        "a list": with_header([1, 2]),
        "nested": with_header(b"[" * 100_000),
        "no text": with_header(b'{"a": "\xff\xfe"}'),
        "no table": with_header({}),
        "a table of numbers": with_header({"__metadata__": {"secure_codream": 3}}),
        "somebody else's": with_header({"__metadata__": {"format": "pt"}}),
        "a description of nothing": with_header({"__metadata__": {"secure_codream": "{}"}}),
        "a description that is none": with_header({"__metadata__": {"secure_codream": "]"}}),
        "too many tensors": with_header({str(number): 0 for number in range(20_001)}),
        "a tensor beyond the file": with_header(one_tensor(data_offsets=[0, 1 << 40]), bytes(8)),
        "a tensor of another length": with_header(one_tensor(shape=[3]), bytes(8)),
        "a huge shape": with_header(one_tensor(shape=[1 << 62, 1 << 62]), bytes(8)),
        "a negative shape": with_header(one_tensor(shape=[-2]), bytes(8)),
        "offsets the wrong way round": with_header(one_tensor(data_offsets=[8, 0]), bytes(8)),
        "bytes of no tensor": with_header(one_tensor(), bytes(16)),
        "an unknown type": with_header(one_tensor(dtype="F33"), bytes(8)),
        "overlapping tensors": with_header({**one_tensor(), "1": one_tensor()["0"]}, bytes(8)),
        "weights that are not finite": NOT_FINITE,
        "a pickle": b"\x80\x04\x95" + bytes(100),
    }
    | {
        f"{key} of {value!r:.30}": with_header({"__metadata__": saying(**{key: value})})
        for key, value in [
            ("form", 2),
            ("form", "1"),
            ("model", "no_such_model"),
            ("model", "x" * 300),
            ("model", 3),
            ("code", "ab"),
            ("code", "ab" * 32),  # for a model of the zoo
            ("charter", "zz" * 32),
            ("charter", "ab" * 32 + "\n"),
            ("client", "alice\n"),
            ("client", "../alice"),
            ("federation", ""),
            ("learnt", -1),
            ("learnt", 1.5),
            ("shape", [1, 8]),
            ("shape", [1, 8, 8, 8]),
            ("shape", [17, 8, 8]),
            ("shape", [1, 0, 8]),
            ("shape", [1, 8, 1 << 40]),
            ("classes", 1),
            ("classes", 10_001),
            ("class_names", ["a"]),
            ("class_names", ["a"] * 10),
            ("class_names", [""] * 10),
            ("standardisation", {"mean": [0.5], "std": [0.0]}),
            ("standardisation", {"mean": [0.5, 0.5], "std": [0.5]}),
            ("standardisation", {"mean": [0.5, 0.5], "std": [0.5, 0.5]}),  # of two channels, for one
            ("standardisation", {"mean": [], "std": []}),
            ("standardisation", {"mean": [1e999], "std": [1]}),
            ("standardisation", {"mean": [float("nan")], "std": [1]}),
            ("figures", {"test_accuracy": 1.5, "train_accuracy": None}),
            ("figures", {"test_accuracy": None}),
            ("unknown", 1),
            ("classes", ...),
        ]
    }
    | {
        "figures of a private model": with_header(
            {"__metadata__": saying(private=True, figures={"test_accuracy": 1, "train_accuracy": 1})}
        )
    }
)


@pytest.mark.parametrize("what", REFUSED)
def test_what_is_no_model_is_refused_in_words_and_changes_nothing(tmp_path: Path, what: str) -> None:
    path = tmp_path / MODEL
    path.write_bytes(REFUSED[what])
    with pytest.raises(CheckpointError, match=rf"{MODEL}: .* (needed|allowed|used)") as caught:
        read_checkpoint(path)
    assert len(str(caught.value)) < 1000
    taken = small_model(2)
    with pytest.raises(CheckpointError, match="move it away to train anew"):
        go_on(path, taken, DESCRIBED)
    assert same(taken, small_model(2))


def test_control_the_same_header_with_nothing_changed_is_taken(tmp_path: Path) -> None:
    (tmp_path / MODEL).write_bytes(with_header(one_tensor(), bytes(8)))
    assert read_checkpoint(tmp_path / MODEL).weights["0"].tolist() == [0.0, 0.0]


@pytest.mark.parametrize("what", ["missing", "a folder", "a pipe", "code"])
def test_what_is_no_file_of_weights_is_refused_and_runs_nothing(tmp_path: Path, what: str) -> None:
    path = tmp_path / MODEL
    if what == "a folder":
        path.mkdir()
    elif what == "a pipe":
        os.mkfifo(path)  # opened, it would wait for ever
    elif what == "code":
        torch.save(Evil(tmp_path / "ran"), path)
    with pytest.raises(CheckpointError, match="found no"):
        read_checkpoint(path)
    with pytest.raises(CheckpointError, match=r"no weights to go on with|move it away to train anew"):
        go_on(path, small_model(), DESCRIBED)
    assert not (tmp_path / "ran").exists()


def test_code_in_a_checkpoint_control_runs_when_anything_is_unpickled(tmp_path: Path) -> None:
    torch.save(Evil(tmp_path / "ran"), tmp_path / "model.pt")
    torch.load(tmp_path / "model.pt", weights_only=False)
    assert (tmp_path / "ran").exists()


def test_a_file_larger_than_allowed_is_not_read(tmp_path: Path) -> None:
    with (tmp_path / MODEL).open("wb") as file:
        file.truncate((8 << 30) + 1)  # a hole, which takes no room
    with pytest.raises(CheckpointError, match="found 8589934593 bytes; at most 8589934592 are allowed"):
        read_checkpoint(tmp_path / MODEL)


@pytest.mark.parametrize(
    ("other", "said"),
    [
        (build("cnn2", channels=1, size=8, classes=10, seed=0), "tensors differ"),
        (build("mlp", channels=1, size=8, classes=11, seed=0), r"float32 \(11, 64\).*needed is float32 \(10, 64\)"),
        (small_model().double(), "float64.*needed is float32"),
    ],
    ids=["another model", "another width", "another type"],
)
def test_weights_of_another_model_are_refused_whole(tmp_path: Path, other: torch.nn.Module, said: str) -> None:
    write_checkpoint(tmp_path / MODEL, other, DESCRIBED)
    taken = small_model(2)
    with pytest.raises(CheckpointError, match=f"weights of another model: .*{said}"):
        read_checkpoint(tmp_path / MODEL).put_into(taken)
    assert same(taken, small_model(2))


def damaged(whole: bytes, how: str, draw: random.Random) -> bytes:
    header = 8 + int.from_bytes(whole[:8], "little")
    if how == "cut":
        return whole[: draw.randrange(len(whole))]
    if how == "bits of the header":
        changed = bytearray(whole)
        for _ in range(draw.choice([1, 1, 2, 8])):
            changed[draw.randrange(header)] ^= 1 << draw.randrange(8)
        return bytes(changed)
    if how == "bytes of the header":
        start = draw.randrange(header)
        return whole[:start] + draw.randbytes(draw.randrange(1, 9)) + whole[start + draw.randrange(9) :]
    if how == "pieces moved":
        first, second = sorted(draw.randrange(len(whole)) for _ in range(2))
        return whole[second:] + whole[first:second] + whole[:first]
    return draw.randbytes(draw.randrange(2000))


@pytest.mark.parametrize("how", ["cut", "bits of the header", "bytes of the header", "pieces moved", "noise"])
def test_random_damage_is_refused_in_words_or_leaves_a_whole_model(tmp_path: Path, how: str) -> None:
    """Whatever a file holds: a typed error, and the model as it was; or all of the weights, and a sound description."""
    whole, draw, path = checkpoint_bytes(small_model(1), DESCRIBED), random.Random(how), tmp_path / MODEL
    untouched, refused = small_model(2), 0
    for _ in range(400):
        content = damaged(whole, how, draw)
        path.write_bytes(content)
        taken = small_model(2)
        try:
            found = read_checkpoint(path)
            found.put_into(taken)
        except CheckpointError as error:
            assert str(path) in str(error)
            refused += 1
            assert same(taken, untouched)
        else:
            assert msgspec.convert(msgspec.to_builtins(found.description), Description) == found.description
            assert same(taken, small_model(1))  # of other bytes in the header, such as the client's name
    assert refused >= (400 if how in ("cut", "pieces moved", "noise") else 300)


# -- killed while it is written ---------------------------------------------


class Killed(BaseException):
    """Stands for SIGKILL: nothing in the writer takes it for an error."""


def interrupted_at(number: int, monkeypatch: pytest.MonkeyPatch, write: Callable[[], object]) -> bool:
    """Run `write` and stop it at its system call `number`, as a kill does: nothing that follows is done."""
    calls, stopped = count(), False

    def killable(name: str) -> Callable[..., Any]:
        real = getattr(os, name)

        def call(*arguments: Any, **options: Any) -> Any:
            nonlocal stopped
            if stopped:
                raise Killed
            if next(calls) == number:
                stopped = True
                raise Killed
            return real(*arguments, **options)

        return call

    with monkeypatch.context() as patched:
        for name in ("fsync", "replace", "unlink", "open", "mkdir"):
            patched.setattr(os, name, killable(name))
        try:
            write()
        except Killed:
            return True
    return False


def test_killed_between_any_two_steps_of_a_write_the_old_or_the_new_model_is_there_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, seen = tmp_path / MODEL, set()
    new = replace(DESCRIBED, learnt=2)
    for number in count():
        write_checkpoint(path, small_model(1), replace(DESCRIBED, learnt=1))
        killed = interrupted_at(number, monkeypatch, lambda: write_checkpoint(path, small_model(2), new))
        kept = read_checkpoint(path)
        taken = small_model(3)
        kept.put_into(taken)
        assert same(taken, small_model(kept.description.learnt))
        seen.add((killed, kept.description.learnt))
        if not killed:
            break
    assert seen == {(True, 1), (True, 2), (False, 2)} and number >= 4


WRITES = """
import sys
from pathlib import Path
from msgspec.structs import replace
from tests.secure_codream.models import DESCRIBED, small_model, write_checkpoint
path = Path(sys.argv[1])
models = [small_model(0), small_model(1)]
for number in range(1_000_000):
    write_checkpoint(path, models[number % 2], replace(DESCRIBED, learnt=number))
    print(number, flush=True)
"""


def test_a_process_killed_while_it_writes_leaves_a_whole_model(tmp_path: Path) -> None:
    """Forty looks at what a kill would leave, then one; what it left beside is cleared by the next writer."""
    path, draw = tmp_path / MODEL, random.Random(0)
    writer = subprocess.Popen([sys.executable, "-c", WRITES, str(path)], stdout=subprocess.PIPE, text=True)
    try:
        assert writer.stdout is not None and writer.stdout.readline()
        for _ in range(40):
            for _ in range(draw.randrange(1, 4)):
                writer.stdout.readline()
            writer.send_signal(signal.SIGSTOP)  # wherever it is, until it goes on: what a kill here would leave
            kept, taken = read_checkpoint(path), small_model(3)
            kept.put_into(taken)
            assert same(taken, small_model(kept.description.learnt % 2))
            writer.send_signal(signal.SIGCONT)
    finally:
        writer.kill()
        writer.wait()
    kept = read_checkpoint(path)
    write_checkpoint(path, small_model(1), DESCRIBED)
    assert kept.description.learnt > 0 and [one.name for one in tmp_path.iterdir()] == [MODEL]


# -- the best weights ---------------------------------------------


def judge() -> Judge:
    rng = np.random.default_rng(0)
    images = rng.standard_normal((40, 1, 8, 8)).astype(np.float32)
    cpu = torch.device("cpu")
    labels = predict_logits(small_model(1), images, cpu).argmax(1).astype(np.int64)  # that model gets all of them right
    return Judge(LabelledImages(images, labels, 10), cpu, held_back=True)


def outputs(folder: Path) -> Outputs:
    figures = EventLog(Appended(folder / "metrics.jsonl"))
    return Outputs(folder, figures, sums=False, tells=True, failed=lambda name, error: pytest.fail(f"{name}: {error}"))


METRICS = Metrics(rounds=1, accuracy=None, train_accuracy=None, distil_loss=0.0)


def test_the_best_weights_and_their_figure_survive_a_restart(tmp_path: Path) -> None:
    able, trained = judge(), small_model(1)
    first = outputs(tmp_path)
    first.take(trained, DESCRIBED, 0, able)
    best = able.judge(trained, 3)
    first.learnt = 3
    first.keep(METRICS)
    with torch.no_grad():
        for weight in trained.parameters():
            weight.zero_()
    assert able.judge(trained, 4).worse
    first.learnt = 4
    first.keep(METRICS)
    later, again = judge(), small_model(2)
    assert outputs(tmp_path).take(again, DESCRIBED, 4, later) == 4
    assert same(again, trained), "it goes on with the newest"
    assert later.best_round == 3
    verdict = later.judge(again, 4)
    assert verdict.best.correct == best.score.correct and verdict.best_round == 3
    later.restore(again)
    assert same(again, small_model(1))


def test_best_weights_of_another_charter_are_refused(tmp_path: Path) -> None:
    write_checkpoint(tmp_path / MODEL, small_model(), DESCRIBED)
    write_checkpoint(tmp_path / BEST, small_model(), replace(DESCRIBED, charter="cd" * 32))
    with pytest.raises(CheckpointError, match=r"best\.safetensors"):
        outputs(tmp_path).take(small_model(), DESCRIBED, 9, judge())
    assert outputs(tmp_path).take(small_model(), DESCRIBED, 9) == DESCRIBED.learnt
