"""A user's own model and data: what is accepted, and what is said about the rest."""

import itertools
import sys
import textwrap

import numpy as np
import pytest
import torch

from codream_clients.data.datasets import LabelledImages
from codream_clients.data.pixels import RawImages
from codream_clients.data.sources import Reading, load_source
from codream_clients.models.zoo import build
from codream_clients.own_parts import OwnPartError, is_reference, load_own_part

NUMBERS = itertools.count()


@pytest.fixture
def module(tmp_path, monkeypatch):
    """Writes a module into the current folder and returns its name, which is new each time."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))

    def write(code):
        name = f"own_part_{next(NUMBERS)}"
        text = "import numpy as np\nimport torch\nfrom torch import nn\n" + textwrap.dedent(code)
        (tmp_path / f"{name}.py").write_text(text)
        return name

    return write


def build_own(reference, **changed):
    return build(reference, **({"channels": 1, "size": 8, "classes": 3, "seed": 0} | changed))


LINEAR = """
    def build(channels, size, classes):
        return nn.Sequential(nn.Flatten(), nn.Linear(channels * size * size, classes))
"""


def test_references_are_told_from_names_and_paths():
    assert is_reference("my_module:build")
    assert is_reference("my.package.models:build")
    for text in (
        "resnet18",
        "./scans.npz",
        "C:\\scans",
        "a:b:c",
        "a.b",
        ":build",
        "module:",
        "my module:build",
        "a/b:c",
    ):
        assert not is_reference(text)


def test_an_own_model_is_built_where_a_name_is_taken(module):
    name = module(LINEAR)
    model = build_own(f"{name}:build", channels=3, size=28, classes=7)
    assert model(torch.zeros(2, 3, 28, 28)).shape == (2, 7)


def test_an_own_models_weights_follow_the_seed_and_leave_the_random_state(module):
    name = module(LINEAR)
    torch.manual_seed(3)
    expected = torch.rand(2)
    torch.manual_seed(3)
    one, same, other = (build_own(f"{name}:build", seed=seed)[1].weight for seed in (1, 1, 2))
    assert torch.equal(torch.rand(2), expected)
    assert torch.equal(one, same)
    assert not torch.equal(one, other)


def test_an_own_model_gets_height_and_width_where_they_differ(module):
    name = module("""
        def build(channels, size, classes):
            height, width = size
            return nn.Sequential(nn.Flatten(), nn.Linear(channels * height * width, classes))
    """)
    assert build_own(f"{name}:build", size=(8, 12))(torch.zeros(2, 1, 8, 12)).shape == (2, 3)
    with pytest.raises(OwnPartError, match="cannot unpack non-iterable int"):
        build_own(f"{name}:build", size=(8, 8))


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ("return nn.Sequential(nn.Flatten(), nn.Linear(64, 4))", "the last layer gives 4 and must give 3"),
        ("return 'resnet'", "found str; a torch.nn.Module is needed"),
        ("return nn.Sequential", "found the class Sequential; call it"),
        ("raise KeyError('width')", r"1, 8, 3\) failed: KeyError: 'width'"),
        ("raise SystemExit(0)", r"1, 8, 3\) failed: SystemExit: 0; leave out exit\(\)"),
    ],
)
def test_an_own_model_goes_through_the_gate(module, body, message):
    name = module(f"""
        def build(channels, size, classes):
            {body}
    """)
    with pytest.raises(OwnPartError, match=rf"^{name}:build\(.*{message}"):
        build_own(f"{name}:build")


def test_a_module_that_ends_the_process_is_refused(module):
    name = module("import sys\nsys.exit(0)\n")
    with pytest.raises(OwnPartError, match=r"failed: SystemExit: 0; leave out .*__main__"):
        load_own_part(f"{name}:build")


@pytest.mark.parametrize("file", ["random.py", "types.py", "secrets.py", "torch.py", "numpy.py"])
def test_a_file_that_hides_a_librarys_module_is_refused(module, tmp_path, file):
    name = module(LINEAR)
    for harmless in ("test.py", "models.py", "random.txt"):
        (tmp_path / harmless).write_text("")
    assert callable(load_own_part(f"{name}:build"))  # control
    (tmp_path / file).write_text("")
    with pytest.raises(OwnPartError, match=rf"found {tmp_path / file}, which hides .*; give the file another name"):
        load_own_part(f"{name}:build")


def test_modules_and_names_that_are_not_there(module):
    name = module("def build(channels, size, classes): ...\nnumber = 3\n")
    with pytest.raises(OwnPartError, match="no module 'not_there' in"):
        load_own_part("not_there:build")
    with pytest.raises(OwnPartError, match=rf"'{name}' has no 'bild'; found build"):
        load_own_part(f"{name}:bild")
    with pytest.raises(OwnPartError, match="found int; something that can be called"):
        load_own_part(f"{name}:number")
    with pytest.raises(OwnPartError, match="module:name is needed"):
        load_own_part("build")
    with pytest.raises(OwnPartError, match="failed: SyntaxError"):
        load_own_part(f"{module('def build(:')}:build")
    with pytest.raises(OwnPartError, match="failed: ModuleNotFoundError: No module named 'not_installed'"):
        load_own_part(f"{module('import not_installed')}:build")
    with pytest.raises(OwnPartError, match=r"failed: .*TypeError"):
        build_own(f"{module('def build(channels): ...')}:build")


def returned(module, expression, **options):
    name = module(f"""
        def images(count, dtype=np.uint8, shape=(9, 9, 3), top=256):
            return np.random.default_rng(0).integers(0, top, (count, *shape)).astype(dtype)
        def labels(count, classes=3):
            return np.arange(count) % classes
        def load():
            return {expression}
    """)
    return load_source(f"{name}:load", Reading(**options))


def test_own_bytes_are_standardised_like_a_files(module):
    source = returned(module, "(images(6), labels(6)), (images(3), labels(3)[:, None])")
    assert isinstance(source.train, RawImages)
    assert (source.train.shape, source.train.classes, len(source.test)) == ((3, 9, 9), 3, 3)
    assert source.published is None
    assert returned(module, "(images(6), labels(6)), (images(3), labels(3))", classes=5).train.classes == 5


def test_own_floats_and_labelled_images_are_taken_as_they_are(module):
    floats = "images(6, np.float32, (3, 9, 9), 5) - 2, labels(6)"
    source = returned(module, f"({floats}), ({floats})")
    assert isinstance(source.train, LabelledImages)
    assert source.train.shape == (3, 9, 9)
    tensors = "(torch.linspace(-1, 1, 486).reshape(6, 1, 9, 9), torch.arange(6) % 3)"
    assert returned(module, f"{tensors}, {tensors}").train.shape == (1, 9, 9)
    labelled = "LabelledImages(np.zeros((4, 1, 9, 9), np.float32), np.arange(4), 4)"
    name = module(f"""
        from codream_clients.data.datasets import LabelledImages
        def load(): return {labelled}, {labelled}
    """)
    assert np.array_equal(load_source(f"{name}:load").train.labels, np.arange(4))


@pytest.mark.parametrize(
    ("expression", "message"),
    [
        ("images(6)", r"returned ndarray of shape \(6, 9, 9, 3\); \(train, test\), each .* is needed"),
        ("None", "returned NoneType"),
        ("(images(6), labels(6), 3), (images(6), labels(6))", "found tuple of 3 for training"),
        (
            "(images(6), labels(5)), (images(6), labels(6))",
            r"training labels has shape \(5,\), for 6 images",
        ),
        (
            "(images(6), labels(6)), (images(6, shape=(8, 8)), labels(6))",
            r"\(3, 9, 9\) in 3 classes, test images of \(1, 8, 8\)",
        ),
        (
            "(images(6) * 2.5, labels(6)), (images(6) * 2.5, labels(6))",
            "training images: found float64 .*choose a window",
        ),
        (
            "(images(6) / 255 - 0.5, labels(6)), (images(6), labels(6))",
            "training images standardised already, test images",
        ),
        (
            "(images(6) - 200.0, labels(6)), (images(6) - 200.0, labels(6))",
            r"values from -200 to 55; uint8 .*, or standardised floats",
        ),
        ("(images(6), labels(6) / 2), (images(6), labels(6))", "training labels is float64 with fractions such as 0.5"),
        ("(images(6), labels(6) - 1), (images(6), labels(6))", r"training labels lies in \[-1, 1\]"),
        ("(images(6), labels(6) * 7), (images(6), labels(6) * 7)", "3 labels up to 14, but none is 1"),
        (
            "(images(6, np.float32, (3, 9, 9)), labels(6) + 1), (images(6, np.float32, (3, 9, 9)), labels(6) + 1)",
            "3 labels up to 3, but none is 0",
        ),
        ("(images(0), labels(0)), (images(6), labels(6))", "training images: no images"),
        ("([[1], [1, 2]], labels(2)), (images(6), labels(6))", "which is no array"),
        ("({'a'}, labels(2)), (images(6), labels(6))", "which is no array of numbers"),
        ("1 / 0", r"load\(\) failed: ZeroDivisionError"),
    ],
)
def test_own_data_that_do_not_fit_are_described(module, expression, message):
    with pytest.raises(OwnPartError, match=message):
        returned(module, expression)
