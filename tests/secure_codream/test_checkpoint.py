"""A client's weights on disk."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from codream_clients.data.datasets import LabelledImages
from codream_clients.learning.judge import Judge
from codream_clients.learning.participant import Metrics
from codream_clients.learning.training import predict_logits
from codream_clients.models.zoo import build
from secure_codream.deployment.checkpoint import CheckpointError, read_weights, write_weights
from secure_codream.deployment.files import Appended, EventLog
from secure_codream.deployment.outputs import Outputs

CHARTER = "ab" * 32


def model(seed: int = 0, name: str = "cnn2") -> torch.nn.Module:
    return build(name, channels=1, size=8, classes=10, seed=seed)


def same(one: torch.nn.Module, other: torch.nn.Module) -> bool:
    pairs = zip(one.state_dict().values(), other.state_dict().values(), strict=True)
    return all(torch.equal(a, b) for a, b in pairs)


def test_weights_come_back(tmp_path: Path) -> None:
    write_weights(tmp_path / "model.pt", model(1), CHARTER)
    taken = model(2)
    assert not same(taken, model(1))
    read_weights(tmp_path / "model.pt", taken, CHARTER)
    assert same(taken, model(1))
    assert [path.name for path in tmp_path.iterdir()] == ["model.pt"]


def test_weights_say_which_epochs_they_have_learnt(tmp_path: Path) -> None:
    path = tmp_path / "model.pt"
    write_weights(path, model(), CHARTER)
    assert read_weights(path, model(), CHARTER) == 0
    write_weights(path, model(), CHARTER, certified=7)
    assert read_weights(path, model(), CHARTER) == 7


class Evil:
    """Unpickled, it would leave a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.path,)


@pytest.mark.parametrize(
    "how", ["missing", "another model", "another charter", "older form", "half", "empty", "not finite", "code"]
)
def test_what_is_no_weights_of_this_model_is_refused_and_changes_nothing(tmp_path: Path, how: str) -> None:
    path = tmp_path / "model.pt"
    if how == "another model":
        write_weights(path, model(1, "mlp"), CHARTER)
    elif how == "another charter":  # one without privacy, say
        write_weights(path, model(1), "cd" * 32)
    elif how == "older form":
        torch.save({"recipe": CHARTER, "weights": model(1).state_dict()}, path)
    elif how == "empty":
        path.touch()
    elif how == "half":
        write_weights(path, model(1), CHARTER)
        path.write_bytes(path.read_bytes()[:1000])
    elif how == "not finite":
        broken = model(1)
        next(broken.parameters()).data.fill_(torch.nan)
        write_weights(path, broken, CHARTER)
    elif how == "code":
        torch.save(Evil(tmp_path / "ran"), path)
    taken = model(2)
    with pytest.raises(CheckpointError, match=r"no weights to go on with|move it away to train anew"):
        read_weights(path, taken, CHARTER)
    assert same(taken, model(2))
    assert not (tmp_path / "ran").exists()


def test_code_in_a_checkpoint_control_runs_when_anything_is_unpickled(tmp_path: Path) -> None:
    torch.save(Evil(tmp_path / "ran"), tmp_path / "model.pt")
    torch.load(tmp_path / "model.pt", weights_only=False)
    assert (tmp_path / "ran").exists()


def judge() -> Judge:
    rng = np.random.default_rng(0)
    images = rng.standard_normal((40, 1, 8, 8)).astype(np.float32)
    cpu = torch.device("cpu")
    labels = predict_logits(model(1), images, cpu).argmax(1).astype(np.int64)  # that model gets all of them right
    return Judge(LabelledImages(images, labels, 10), cpu, held_back=True)


def outputs(folder: Path) -> Outputs:
    figures = EventLog(Appended(folder / "metrics.jsonl"))
    return Outputs(folder, CHARTER, figures, sums=False, failed=lambda name, error: pytest.fail(f"{name}: {error}"))


METRICS = Metrics(rounds=1, accuracy=None, train_accuracy=None, distil_loss=0.0)


def test_the_best_weights_and_their_figure_survive_a_restart(tmp_path: Path) -> None:
    able, trained = judge(), model(1)
    first = outputs(tmp_path)
    first.take(trained, 0, able)
    best = able.judge(trained, 3)
    first.learnt = 3
    first.keep(METRICS)
    with torch.no_grad():
        for weight in trained.parameters():
            weight.zero_()
    assert able.judge(trained, 4).worse
    first.learnt = 4
    first.keep(METRICS)
    later, again = judge(), model(2)
    assert outputs(tmp_path).take(again, 4, later) == 4
    assert same(again, trained), "it goes on with the newest"
    assert later.best_round == 3
    verdict = later.judge(again, 4)
    assert verdict.best.correct == best.score.correct and verdict.best_round == 3
    later.restore(again)
    assert same(again, model(1))


def test_best_weights_of_another_charter_are_refused(tmp_path: Path) -> None:
    write_weights(tmp_path / "model.pt", model(), CHARTER)
    write_weights(tmp_path / "best.pt", model(), "cd" * 32)
    with pytest.raises(CheckpointError, match=r"best\.pt"):
        outputs(tmp_path).take(model(), 0, judge())
    assert outputs(tmp_path).take(model(), 0) == 0
