"""A model's file opened: what builds it, whose code runs, and which images it takes."""

from __future__ import annotations

import re
import shutil
import sys
from dataclasses import replace as changed
from pathlib import Path

import numpy as np
import pytest
import torch
from msgspec.structs import replace

import secure_codream
from codream_clients.data.datasets import load_digits_data
from codream_clients.data.pixels import RawImages, Scale
from codream_clients.models.zoo import build
from codream_clients.own_parts import OwnPartError
from secure_codream.configuration.own_code import source_digest
from secure_codream.configuration.reading import ConfigError
from secure_codream.deployment.checkpoint import CheckpointError
from secure_codream.deployment.description import Description, Standardisation
from secure_codream.deployment.files import MODEL
from secure_codream.use.export import export
from secure_codream.use.model import MOST_IN_BATCH, OpenedModel, UseError, open_model
from tests.secure_codream.models import DESCRIBED, HALF, opened, small_model, write_checkpoint

OWN = """
from pathlib import Path
from torch import nn
Path("ran").write_text("{mark}")
def build(channels, size, classes):
    return nn.Sequential(nn.Flatten(), nn.Linear(channels * size * size, classes))
"""

ENDING = """
from torch import nn
class Ending(nn.Sequential):
    def forward(self, images):
        raise SystemExit(0)
def build(channels, size, classes):
    return Ending(nn.Flatten(), nn.Linear(channels * size * size, classes))
"""


def pixels(count: int = 5) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (count, 8, 8, 1), dtype=np.uint8)


# -- what comes out ---------------------------------------------


def test_probabilities_are_the_models_on_pixels_as_they_were_standardised_in_training(tmp_path: Path) -> None:
    images = torch.from_numpy(pixels().transpose(0, 3, 1, 2).astype(np.float32))
    with torch.no_grad():
        expected = small_model(1).eval()((images / 255 - 0.5) / 0.25).double().softmax(dim=1).numpy()
    found = opened(tmp_path).probabilities_of_pixels(pixels())
    assert found == pytest.approx(expected, abs=1e-6) and found.sum(axis=1) == pytest.approx(np.ones(5))


def test_a_file_is_opened_as_its_folder_is(tmp_path: Path) -> None:
    opened(tmp_path)
    assert (
        open_model(tmp_path / MODEL, device="cpu").path == open_model(tmp_path, device="cpu").path == tmp_path / MODEL
    )


def test_batches_are_small_where_images_are_large(tmp_path: Path) -> None:
    model = opened(tmp_path)
    assert model.batch == MOST_IN_BATCH
    large = replace(HALF, shape=(3, 224, 224))
    assert OpenedModel(model.path, large, model.network, model.scale).batch == 13
    assert OpenedModel(model.path, replace(HALF, shape=(16, 1024, 1024)), model.network, model.scale).batch == 1
    given = pixels(2 * MOST_IN_BATCH + 3)
    assert model.probabilities_of_pixels(given)[-3:] == pytest.approx(
        model.probabilities_of_pixels(given[-3:]), abs=1e-6
    )


def test_the_page_names_all_that_a_file_says() -> None:
    page = (Path(__file__).parents[2] / "docs" / "use.md").read_text(encoding="utf-8")
    table = page.partition("## What a model's file says")[2].partition("\n\nWith")[0]
    told = {*re.findall(r"`(\w+)`", "".join(line.split("|")[1] for line in table.splitlines() if line[:3] == "| `"))}
    assert told == {*Description.__struct_fields__} - {"form", "written_by"}


def test_the_public_name_opens_a_model(tmp_path: Path) -> None:
    opened(tmp_path)
    assert secure_codream.open_model(tmp_path, device="cpu").description == HALF


# -- models of the zoo ---------------------------------------------


def test_a_shape_that_the_weights_do_not_have_is_refused_before_it_takes_memory(tmp_path: Path) -> None:
    """16 x 1024 x 1024 pixels into 128 numbers would be eight gigabytes of weights."""
    write_checkpoint(tmp_path / MODEL, small_model(1), replace(HALF, shape=(16, 1024, 1024)))
    with pytest.raises(CheckpointError, match=r"weights of another model: .*needed is float32 \(128, 16777216\)"):
        open_model(tmp_path, device="cpu")


@pytest.mark.parametrize(
    ("shape", "said"), [((1, 8, 9), "another model"), ((1, 4, 4), "sides >= 8"), ((1, 8, 8), "another model")]
)
def test_a_shape_that_the_zoo_does_not_build_is_refused(tmp_path: Path, shape: tuple[int, int, int], said: str) -> None:
    name = "cnn2" if shape == (1, 8, 8) else "mlp"
    write_checkpoint(tmp_path / MODEL, small_model(1), replace(HALF, shape=shape, model=name))
    with pytest.raises(CheckpointError, match=said):
        open_model(tmp_path, device="cpu")


def test_a_model_of_images_that_are_not_square_is_used(tmp_path: Path) -> None:
    """Training takes them, and so must whoever predicts with what came of it."""
    model = build("cnn2", channels=1, size=(8, 12), classes=10, seed=1)
    write_checkpoint(tmp_path / MODEL, model, replace(HALF, shape=(1, 8, 12), model="cnn2"))
    opened = open_model(tmp_path, device="cpu")
    assert opened.probabilities(np.zeros((3, 1, 8, 12), np.float32)).shape == (3, 10)


# -- somebody's own code ---------------------------------------------


@pytest.fixture
def own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with a model of own code, which leaves a file where it runs."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])  # what one test looks up there, the next must not find
    Path("networks_of_mine.py").write_text(OWN.format(mark="first"))
    described = replace(HALF, model="networks_of_mine:build", code=source_digest("networks_of_mine:build"))
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(64, 10))
    write_checkpoint(tmp_path / MODEL, model, described)
    return tmp_path


def test_own_code_runs_only_where_it_is_named(own: Path) -> None:
    with pytest.raises(UseError, match=r"--model networks_of_mine:build is needed, which RUNS THAT CODE"):
        open_model(own, device="cpu")
    assert not Path("ran").exists()
    assert open_model(own, builder="networks_of_mine:build", device="cpu").probabilities_of_pixels(pixels()).shape == (
        5,
        10,
    )
    assert Path("ran").exists()  # the control


def test_own_code_runs_only_as_the_source_it_was(own: Path) -> None:
    Path("networks_of_mine.py").write_text(OWN.format(mark="changed since"))
    with pytest.raises(UseError, match=r"found source with digest .*no other is run: put the file back"):
        open_model(own, builder="networks_of_mine:build", device="cpu")
    assert not Path("ran").exists()


def test_own_code_may_have_moved(own: Path) -> None:
    Path("elsewhere").mkdir()
    shutil.move("networks_of_mine.py", "elsewhere/networks.py")
    assert open_model(own, builder="elsewhere.networks:build", device="cpu").batch == MOST_IN_BATCH
    with pytest.raises(ConfigError, match=r"found no networks_of_mine\.py"):
        open_model(own, builder="networks_of_mine:build", device="cpu")


def test_own_code_finds_the_rest_of_its_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    package = tmp_path / "hospital_networks"
    package.mkdir()
    (package / "__init__.py").touch()
    (package / "layers.py").write_text("from torch.nn import Linear\n")
    source = OWN.format(mark="package").replace(
        "from torch import nn", "from torch import nn\nfrom .layers import Linear"
    )
    (package / "models.py").write_text(source.replace("nn.Linear", "Linear"))
    described = replace(
        HALF, model="hospital_networks.models:build", code=source_digest("hospital_networks.models:build")
    )
    write_checkpoint(tmp_path / MODEL, torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(64, 10)), described)
    assert open_model(tmp_path, builder="hospital_networks.models:build", device="cpu").path == tmp_path / MODEL


@pytest.mark.parametrize(
    ("source", "said"),
    [
        ("def build(channels, size, classes): return 3", "returned int; an nn.Module with weights is needed"),
        ("def build(channels, size, classes): raise OSError('no disk')", r"build\(1, 8, 10\) failed: OSError: no disk"),
        (
            "def build(channels, size, classes): exit()",
            r"build\(1, 8, 10\) failed: SystemExit: None; leave out exit\(\)",
        ),
        ("exit()", r"running .*other_networks\.py failed: SystemExit: None; leave out exit\(\)"),
        (ENDING, r"the model on images of shape \(1, 1, 8, 8\) failed: SystemExit: 0; leave out exit\(\)"),
        (OWN.replace("nn.Linear(", "nn.Linear(1 + "), "weights of another model"),
        (OWN + "    return nn.Sequential()", None),
    ],
)
def test_own_code_that_gives_no_such_model_is_refused(own: Path, source: str, said: str | None) -> None:
    Path("other_networks.py").write_text(source)
    described = replace(HALF, model="other_networks:build", code=source_digest("other_networks:build"))
    torch.manual_seed(0)
    write_checkpoint(own / MODEL, torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(64, 10)), described)
    if said is None:  # the control
        open_model(own, builder="other_networks:build", device="cpu")
    else:
        with pytest.raises(ValueError, match=said):
            open_model(own, builder="other_networks:build", device="cpu")


def test_a_model_that_a_script_handed_over_is_built_by_whoever_opens_it(own: Path) -> None:
    described = replace(HALF, model=None)
    write_checkpoint(own / MODEL, torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(64, 10)), described)
    with pytest.raises(UseError, match=r"a script handed it over\); --model module:function is needed"):
        open_model(own, device="cpu")
    with pytest.raises(OwnPartError, match="no module 'nowhere'"):
        open_model(own, builder="nowhere:build", device="cpu")
    assert open_model(own, builder="networks_of_mine:build", device="cpu").batch == MOST_IN_BATCH


def test_code_is_not_named_without_need(tmp_path: Path) -> None:
    with pytest.raises(UseError, match="holds mlp, which needs no code"):
        opened(tmp_path, builder="networks_of_mine:build")


def test_a_model_that_ends_the_process_later_is_an_error(tmp_path: Path) -> None:
    class Ending(torch.nn.Module):
        def forward(self, images: torch.Tensor) -> torch.Tensor:
            raise SystemExit(0)

    model = changed(opened(tmp_path), network=torch.nn.Sequential(torch.nn.Linear(8, 8), Ending()).eval())
    with pytest.raises(OwnPartError, match=r"shape \(5, 1, 8, 8\) failed: SystemExit: 0; leave out exit"):
        model.probabilities_of_pixels(pixels())
    with pytest.raises(UseError, match="this model cannot be exported"):
        export(model, tmp_path / "model.pt2")


# -- images ---------------------------------------------


def test_a_scale_that_the_file_has_is_not_replaced(tmp_path: Path) -> None:
    with pytest.raises(UseError, match=r"found mean \(0.1,\).*was trained with mean \(0.5,\) and deviation \(0.25,\)"):
        opened(tmp_path, scale=Scale((0.1,), (0.25,)))
    assert opened(tmp_path, scale=Scale((0.5,), (0.25,))).scale == Scale((0.5,), (0.25,))


def test_a_scale_that_the_file_lacks_is_asked_for(tmp_path: Path) -> None:
    with pytest.raises(UseError, match="--mean and --std, of pixels divided by 255, are needed"):
        opened(tmp_path, DESCRIBED).probabilities_of_pixels(pixels())
    with pytest.raises(UseError, match="found 2 means and deviations; 1 or 1 are needed"):
        opened(tmp_path, DESCRIBED, scale=Scale((0.5, 0.5), (0.25, 0.25)))
    given = opened(tmp_path, DESCRIBED, scale=Scale((0.5,), (0.25,))).probabilities_of_pixels(pixels())
    assert given == pytest.approx(opened(tmp_path).probabilities_of_pixels(pixels()))


def test_labelled_images_are_put_on_the_models_scale(tmp_path: Path) -> None:
    raw = RawImages(pixels(), np.zeros(5, np.int64), 10)
    assert opened(tmp_path).standardised(raw).images == pytest.approx(
        (pixels().transpose(0, 3, 1, 2) / 255 - 0.5) / 0.25, abs=1e-5
    )
    elsewhere = raw.standardised(Scale((0.1307,), (0.3081,)))
    moved = opened(tmp_path).standardised(elsewhere)
    assert moved.images == pytest.approx(opened(tmp_path).standardised(raw).images, abs=1e-5)
    assert moved.scale == Scale((0.5,), (0.25,))


@pytest.mark.parametrize("what", ["nobody's scale", "names in another order", "more classes", "larger"])
def test_labelled_images_that_mean_something_else_are_refused(tmp_path: Path, what: str) -> None:
    digits, _ = load_digits_data(0)
    names = tuple("abcdefghij")
    known = replace(DESCRIBED, standardisation=Standardisation((0.3053,), (0.3761,)), class_names=names)
    model = opened(tmp_path, known)
    assert model.standardised(changed(digits, class_names=names)) is not None  # the control
    given = {
        "nobody's scale": changed(digits, scale=None),
        "names in another order": changed(digits, class_names=names[::-1]),
        "more classes": changed(digits, classes=11),
        "larger": changed(digits, images=np.zeros((len(digits), 1, 9, 9), np.float32)),
    }[what]
    with pytest.raises(UseError, match=r"found (images|the classes) .*; .*model\.safetensors (takes|knows) "):
        model.standardised(given)


def test_images_of_no_known_scale_go_with_a_model_that_was_trained_on_such(tmp_path: Path) -> None:
    digits, _ = load_digits_data(0)
    model = opened(tmp_path, DESCRIBED)
    assert model.standardised(changed(digits, scale=None)).scale is None
    with pytest.raises(UseError, match="a way that nobody recorded"):
        model.standardised(digits)


def test_a_network_of_wrong_logits_is_refused_when_it_is_opened(own: Path) -> None:
    Path("flat_networks.py").write_text(
        "from torch import nn\n"
        "class Flat(nn.Linear):\n"
        "    def forward(self, images): return super().forward(images.flatten(1)).sum(1)\n"
        "def build(channels, size, classes): return Flat(64, 10)\n"
    )
    described = replace(HALF, model="flat_networks:build", code=source_digest("flat_networks:build"))
    write_checkpoint(own / MODEL, torch.nn.Linear(64, 10), described)
    with pytest.raises(UseError, match=r"gave \(1,\); logits \(1, 10\) are needed"):
        open_model(own, builder="flat_networks:build", device="cpu")


def test_normalisation_by_batches_does_not_make_an_image_depend_on_the_others(tmp_path: Path) -> None:
    """The model is in eval mode, also where it has batch norm."""
    write_checkpoint(
        tmp_path / MODEL, build("cnn2", channels=1, size=8, classes=10, seed=0), replace(HALF, model="cnn2")
    )
    model = open_model(tmp_path, device="cpu")
    together, alone = model.probabilities_of_pixels(pixels()), model.probabilities_of_pixels(pixels()[:1])
    assert together[:1] == pytest.approx(alone, abs=1e-6)
