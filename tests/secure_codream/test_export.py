"""A model for other programs: what it gives there is what it gives here, for pixels as they are stored."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from msgspec.structs import replace
from typer.testing import CliRunner

from codream_clients.models.zoo import FRONTS, NETWORKS, ZOO, build
from secure_codream import cli
from secure_codream.deployment.description import Standardisation
from secure_codream.deployment.files import MODEL
from secure_codream.use.export import export
from secure_codream.use.model import OpenedModel, UseError, open_model
from tests.secure_codream.models import DESCRIBED, small_model, write_checkpoint

SCALE = Standardisation((0.1, 0.5, 0.7), (0.2, 0.3, 0.4))


def made(folder: Path, name: str = "mlp") -> OpenedModel:
    """A model of colour pictures of 32 x 32 pixels, its running statistics other than those it begins with."""
    model = build(name, channels=3, size=32, classes=10, seed=1)
    with torch.no_grad():
        model.train()(torch.randn(8, 3, 32, 32, generator=torch.Generator().manual_seed(0)))
    described = replace(
        DESCRIBED, model=name, shape=(3, 32, 32), standardisation=SCALE, class_names=tuple("abcdefghij")
    )
    write_checkpoint(folder / MODEL, model, described)
    return open_model(folder, device="cpu")


def pixels(count: int = 3) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (count, 32, 32, 3), dtype=np.uint8)


def as_given(images: np.ndarray) -> np.ndarray:
    return images.transpose(0, 3, 1, 2).astype(np.float32)


@pytest.mark.parametrize("name", ["mlp", "cnn2", "wrn16_1", "cnn2_gn"])
def test_a_torch_program_gives_what_the_model_gives(tmp_path: Path, name: str) -> None:
    model = made(tmp_path, name)
    export(model, tmp_path / "model.pt2")
    files = {"secure_codream.json": ""}
    program = torch.export.load(tmp_path / "model.pt2", extra_files=files)
    for count in (3, 1):  # for any number of images
        logits, probabilities = program.module()(torch.from_numpy(as_given(pixels(count))))
        assert probabilities.detach().numpy() == pytest.approx(model.probabilities_of_pixels(pixels(count)), abs=1e-6)
        assert torch.equal(logits.softmax(dim=1), probabilities)
    assert json.loads(files["secure_codream.json"])["class_names"] == list("abcdefghij")


@pytest.mark.parametrize("name", ["cnn2", "cnn2_gn"])
def test_an_onnx_model_gives_what_the_model_gives(tmp_path: Path, name: str) -> None:
    for package in ("onnx", "onnxscript", "onnxruntime"):
        pytest.importorskip(package, reason=f"{package} is not installed; pip install -e '.[onnx]' onnxruntime")
    import onnxruntime

    model = made(tmp_path, name)
    export(model, tmp_path / "model.onnx")
    session = onnxruntime.InferenceSession(tmp_path / "model.onnx", providers=["CPUExecutionProvider"])
    assert [one.name for one in session.get_inputs()] == ["pixels"]
    for count in (3, 1):
        logits, probabilities = session.run(["logits", "probabilities"], {"pixels": as_given(pixels(count))})
        assert probabilities == pytest.approx(model.probabilities_of_pixels(pixels(count)), abs=1e-5)
        assert logits.argmax(axis=1).tolist() == probabilities.argmax(axis=1).tolist()
    metadata = session.get_modelmeta().custom_metadata_map
    assert json.loads(metadata["classes"]) == list("abcdefghij")
    assert json.loads(metadata["secure_codream"])["charter"] == "ab" * 32


@pytest.mark.exhaustive
@pytest.mark.parametrize("name", [*ZOO, *NETWORKS, *FRONTS])
def test_every_network_is_exported(tmp_path: Path, name: str) -> None:
    model = made(tmp_path, name)
    export(model, tmp_path / "model.pt2")
    found = torch.export.load(tmp_path / "model.pt2").module()(torch.from_numpy(as_given(pixels())))[1]
    assert found.detach().numpy() == pytest.approx(model.probabilities_of_pixels(pixels()), abs=1e-5)


def test_a_model_of_no_known_scale_takes_standardised_images(tmp_path: Path) -> None:
    write_checkpoint(tmp_path / MODEL, small_model(1), DESCRIBED)
    done = CliRunner().invoke(cli.app, ["export", str(tmp_path), "--out", str(tmp_path / "model.pt2")])
    assert done.exit_code == 0 and "images standardised as in training, (N, 1, 8, 8)" in done.output
    images = torch.randn(2, 1, 8, 8)
    logits, _ = torch.export.load(tmp_path / "model.pt2").module()(images)
    assert torch.allclose(logits, small_model(1).eval()(images), atol=1e-6)


def test_without_the_packages_of_onnx_the_extra_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "onnx", None)
    with pytest.raises(UseError, match=r"pip install 'secure-codream\[onnx\]'"):
        export(made(tmp_path), tmp_path / "model.onnx")
    assert not (tmp_path / "model.onnx").exists()


def test_nothing_finished_is_overwritten_and_no_other_form_is_written(tmp_path: Path) -> None:
    model = made(tmp_path)
    (tmp_path / "model.pt2").write_text("precious")
    with pytest.raises(UseError, match="--force to replace a file"):
        export(model, tmp_path / "model.pt2")
    assert (tmp_path / "model.pt2").read_text() == "precious"
    export(model, tmp_path / "model.pt2", force=True)
    for name in ("model.safetensors", "model", "model.pt"):
        with pytest.raises(UseError, match=r"a name ending in \.pt2 or \.onnx is needed"):
            export(model, tmp_path / name)


def test_a_model_that_cannot_be_traced_is_refused_in_words(tmp_path: Path) -> None:
    class Chooses(torch.nn.Linear):
        def forward(self, images: torch.Tensor) -> torch.Tensor:
            return super().forward(images.flatten(1)) * (1 if images.sum() > 0 else 2)

    model = made(tmp_path)
    odd = OpenedModel(model.path, model.description, Chooses(3 * 32 * 32, 10), model.scale)
    with pytest.raises(UseError, match="this model cannot be exported"):
        export(odd, tmp_path / "model.pt2")
    assert not (tmp_path / "model.pt2").exists()
