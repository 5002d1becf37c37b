"""A client's weights on disk."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from codream_clients.models import build
from secure_codream.checkpoint import CheckpointError, read_weights, write_weights

RECIPE = "ab" * 32


def model(seed: int = 0, name: str = "cnn2") -> torch.nn.Module:
    return build(name, channels=1, size=8, classes=10, seed=seed)


def same(one: torch.nn.Module, other: torch.nn.Module) -> bool:
    pairs = zip(one.state_dict().values(), other.state_dict().values(), strict=True)
    return all(torch.equal(a, b) for a, b in pairs)


def test_weights_come_back(tmp_path: Path) -> None:
    write_weights(tmp_path / "model.pt", model(1), RECIPE)
    taken = model(2)
    assert not same(taken, model(1))
    read_weights(tmp_path / "model.pt", taken, RECIPE)
    assert same(taken, model(1))
    assert [path.name for path in tmp_path.iterdir()] == ["model.pt"]


class Evil:
    """Unpickled, it would leave a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> object:
        return Path.touch, (self.path,)


@pytest.mark.parametrize("how", ["missing", "another model", "another recipe", "half", "not finite", "code"])
def test_what_is_no_weights_of_this_model_is_refused_and_changes_nothing(tmp_path: Path, how: str) -> None:
    path = tmp_path / "model.pt"
    if how == "another model":
        write_weights(path, model(1, "mlp"), RECIPE)
    elif how == "another recipe":  # one without privacy, say
        write_weights(path, model(1), "cd" * 32)
    elif how == "half":
        write_weights(path, model(1), RECIPE)
        path.write_bytes(path.read_bytes()[:1000])
    elif how == "not finite":
        broken = model(1)
        next(broken.parameters()).data.fill_(torch.nan)
        write_weights(path, broken, RECIPE)
    elif how == "code":
        torch.save(Evil(tmp_path / "ran"), path)
    taken = model(2)
    with pytest.raises(CheckpointError, match="without --resume"):
        read_weights(path, taken, RECIPE)
    assert same(taken, model(2))
    assert not (tmp_path / "ran").exists()


def test_code_in_a_checkpoint_control_runs_when_anything_is_unpickled(tmp_path: Path) -> None:
    torch.save(Evil(tmp_path / "ran"), tmp_path / "model.pt")
    torch.load(tmp_path / "model.pt", weights_only=False)
    assert (tmp_path / "ran").exists()
