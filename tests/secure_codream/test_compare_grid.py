"""A comparison's configuration: what is refused before anything starts, and what becomes of the rest."""

from __future__ import annotations

import re
import shlex
import sys
import tomllib
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import tomli_w
from typer.main import get_command

from secure_codream.cli import app
from secure_codream.configuration.reading import ConfigError
from secure_codream.experiments import origins
from secure_codream.experiments.cell import problem_of
from secure_codream.experiments.grid import CompareConfig, Grid, read_grid
from secure_codream.experiments.notation import parse_seeds, partition_fields
from secure_codream.experiments.registry import ALGORITHMS, USUAL_RING
from secure_codream.reports.versions import versions_of

ROOT = Path(__file__).parents[2]
EXAMPLES = ROOT / "examples"
SMALL: dict[str, Any] = {"per_client": 10, "test_limit": 20, "seeds": [0, 1], "rounds": 1}


def grid(**tables: Any) -> Grid:
    compare = {**SMALL, **tables.pop("compare", {})}
    return read_grid(None, {"compare": compare, **tables})


def variant_of(algorithm: str, **own: Any) -> dict[str, Any]:
    return {"compare": {"algorithms": ["m"], "models": ["cnn2_gn"]}, "variants": {"m": {"algorithm": algorithm, **own}}}


def ring(model: str) -> dict[str, Any]:
    return {"table": {**USUAL_RING, "model": model}}


def test_cells_are_algorithms_by_partitions_by_seeds() -> None:
    made = grid(compare={"algorithms": ["isolated", "fedavg"], "partitions": ["iid", "shards:2"], "clients": 3})
    assert [(cell.algorithm, cell.partition, cell.seed) for cell in made.cells] == [
        (algorithm, partition, seed)
        for seed in (0, 1)
        for partition in ("iid", "shards:2")
        for algorithm in ("isolated", "fedavg")
    ]
    assert len({cell.digest for cell in made.cells}) == len({cell.stem for cell in made.cells}) == 8
    assert all(cell.data.seed == cell.seed and cell.models == ("cnn2",) * 3 for cell in made.cells)


def test_every_registered_algorithm_can_be_made() -> None:
    for entry in ALGORITHMS.values():
        assert callable(entry.make().run)


def test_seeds_and_partitions_in_words() -> None:
    assert parse_seeds("0-2,7") == [0, 1, 2, 7]
    assert partition_fields("dirichlet:0.5") == {"partition": "dirichlet", "alpha": 0.5}
    assert partition_fields("shards:2") == {"partition": "shards", "shards": 2}
    for text in ("", "a", "3-1", "1-", "-1"):
        with pytest.raises(ValueError, match="is no seed"):
            parse_seeds(text)
    for text in ("dirichlet", "dirichlet:x", "dirichlet:0", "shards:1.5", "iid:1", "even"):
        with pytest.raises(ValueError, match=r"dirichlet:ALPHA.*numbers above 0"):
            partition_fields(text)


@pytest.mark.parametrize(
    ("tables", "message"),
    [
        ({"compare": {"algorithms": ["fedagv"]}}, r"compare.algorithms: found 'fedagv'; allowed are isolated, codream"),
        ({"compare": {"partitions": ["iid", "even"]}}, r"partitions.1: 'even' is no partition.*dirichlet:ALPHA"),
        ({"compare": {"algorithms": ["isolated", "isolated"]}}, r"isolated more than once"),
        ({"compare": {"seeds": "4-0"}}, r"compare.seeds: '4-0' is no seed"),
        ({"compare": {"rounds": 0}}, r"compare.rounds: found 0; .*greater than or equal to 1"),
        ({"compare": {"round": 3}}, r"compare.round: found 3; there is no such key"),
        ({"compare": {"models": ["cnn9"]}}, r"compare.models: unknown model 'cnn9'; allowed are cnn2"),
        ({"compare": {"models": ["cnn2"] * 5}}, r"compare.models: 5 models for 4 clients"),
        ({"compare": {"clients": 2}}, r"compare.clients: .*found 2 clients; 3 or more are needed, so that a sum hides"),
        ({"compare": {"clients": 4}, "aggregation": {"colluders": 3}}, r"compare.clients: .*4 clients; 5 or more"),
        ({"compare": {"per_client": 100_000}}, r"\[data\]: 4 clients of 100000 images need 400000"),
        ({"compare": {"device": "gpu"}}, r"compare.device: .*'gpu'"),
        ({"data": {"source": "mnits"}}, r"data.source: unknown data source 'mnits'"),
        ({"data": {"source": "mnist"}}, r"root is missing"),
        ({"learning": {"lrr": 1}}, r"\[learning\]: lrr: found 1; there is no such key"),
        ({"dreams": {"steps": -1}}, r"dreams.steps: found -1"),
        ({"communication": {"models": ["cnn9"]}}, r"communication.models: unknown model 'cnn9'"),
        ({"communication": {"algorithms": "x", "models": ["cnn2"]}}, r"communication.algorithms: found 'x'"),
        (
            {"compare": {"algorithms": ["mine"]}, "variants": {"mine": {"algorithm": "codream", "learning": {"x": 1}}}},
            r"variants.mine: \[learning\]: x: found 1",
        ),
        (
            {"compare": {"algorithms": ["mine"]}, "variants": {"mine": {"algorithm": "fedprox", "options": {"m": 1}}}},
            r"variants.mine: algorithm .*FedProx\(m=1\)",
        ),
        (
            {"compare": {"algorithms": ["fedavg"], "models": ["cnn2", "mlp"]}},
            r"no algorithm is left to run: fedavg: it averages parameters, .*found cnn2, mlp",
        ),
        ({"compare": {"against": "fedavg"}}, r"compare.against: found 'fedavg'; allowed are isolated, codream"),
        (
            {"compare": {"algorithms": ["m"]}, "variants": {"m": {"algorithm": "codream", "models": "cnn9"}}},
            r"variants.m.models: unknown model 'cnn9'",
        ),
        (
            {"compare": {"algorithms": ["m"]}, "variants": {"m": {"algorithm": "codream", "models": ["mlp"] * 5}}},
            r"variants.m.models: 5 models for 4 clients",
        ),
        # what no row would show
        (variant_of("fedavg", dreams={"start": "strokes"}), r"m.dreams: found start, .*fedavg.*none is allowed"),
        (variant_of("isolated", learning={"own_weight": 5}), r"m.learning: found own_weight, .*allowed are balanced"),
        (variant_of("codream", learning={"held_back": 0.5}), r"m.learning: found held_back, .*set them for all"),
        (variant_of("codream", dreams={"steps": 0, "update_clip": 2}), r"m.dreams: found update_clip, "),
        (variant_of("codream-noise", dreams={"steps": 20}), r"m.dreams: found steps, of no effect on codream-noise"),
        (variant_of("codream-noise", learning={"loss": {"alpha_tv": 1}}), r"m.learning: found loss, "),
        (variant_of("codream-independent", dreams={"half_way": True}), r"m.dreams: found half_way, "),
        (variant_of("codream-fast", dreams={"steps": 3}), r"m.dreams: found steps, .*batch, logit_clip, window"),
        (variant_of("codream-dp", dreams={"matched": True}), r"m.dreams: found matched, "),
        (variant_of("codream-dp", learning={"warm_up_epochs": 9}), r"m.learning: found warm_up_epochs, "),
        (variant_of("isolated-dp", learning={"lr": 0.5}), r"m.learning: found lr, .*allowed are balanced: "),
        (variant_of("dp-sgd", learning={"distil_lr": 0.5}), r"m.learning: found distil_lr, .*none is allowed"),
        # variants that no table lists
        ({"variants": {"m": {"algorithm": "codrem"}}}, r"variants.m: found 'codrem'; allowed are isolated, codream"),
        ({"variants": {"m": {"algorithm": "codream", "dreams": {"stpes": 3}}}}, r"variants.m.dreams.*stpes: found 3"),
        # models that options name
        (
            {"variants": {"m": {"algorithm": "codream", "options": {"student": "cnn9"}}}},
            r"variants.m.options.student: unknown model 'cnn9'",
        ),
        (variant_of("dp-sgd", options=ring("cnn9")), r"variants.m.options.table.model: unknown model 'cnn9'"),
        (variant_of("dp-sgd", options=ring("cnn2")), r"variants.m.options.table.model: .*BatchNorm"),
    ],
)
def test_refusals_name_the_key_what_was_found_and_what_is_allowed(tables: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        grid(**tables)


def test_mixed_architectures_leave_out_what_averages_parameters() -> None:
    made = grid(compare={"algorithms": ["codream", "fedavg", "avgkd"], "models": ["cnn2", "mlp"]})
    assert {cell.algorithm for cell in made.cells} == {"codream", "avgkd"}
    assert "found cnn2, mlp" in made.not_applicable["fedavg"]
    assert made.cells[0].models == ("cnn2", "mlp", "cnn2", "mlp")


def test_variants_are_put_over_the_shared_settings() -> None:
    plain = {
        "algorithm": "codream",
        "learning": {"balanced": False, "loss": {"alpha_target": 0.0}},
        "dreams": {"steps": 3},
        "options": {"kind": "independent"},
    }
    made = grid(
        compare={"algorithms": ["codream", "plain"], "seeds": [0]},
        variants={"plain": plain},
        learning={"lr": 0.05, "loss": {"alpha_bn": 2.0}},
    )
    shared, variant = made.cells
    assert shared.learning["balanced"] and not variant.learning["balanced"]
    assert variant.learning["lr"] == 0.05
    assert variant.learning["loss"]["alpha_bn"] == 2.0 and variant.learning["loss"]["alpha_target"] == 0.0
    assert variant.dreams.steps == 3 and shared.dreams.steps == 10
    assert variant.entry.options["kind"] == "independent"


def test_a_variant_has_models_of_its_own() -> None:
    mixed = {"models": ["cnn2", "mlp"]}
    made = grid(
        compare={"algorithms": ["codream", "mixed", "fedavg", "apart"], "seeds": [0], "models": "mlp"},
        variants={"mixed": {"algorithm": "codream", **mixed}, "apart": {"algorithm": "fedavg", **mixed}},
    )
    models = {cell.algorithm: cell.models for cell in made.cells}
    assert models == {"codream": ("mlp",) * 4, "mixed": ("cnn2", "mlp") * 2, "fedavg": ("mlp",) * 4}
    assert "found cnn2, mlp" in made.not_applicable["apart"]
    codream, mixed_cell, _ = made.cells
    assert codream.digest != mixed_cell.digest
    assert codream.digest == grid(compare={"algorithms": ["codream"], "models": "mlp"}).cells[0].digest


def test_communication_is_measured_by_model_without_training() -> None:
    made = grid(compare={"algorithms": ["isolated"]}, communication={"models": ["cnn2", "resnet8"]})
    cells = [cell for cell in made.cells if cell.measure == "communication"]
    assert [(cell.algorithm, cell.models) for cell in cells] == [
        (name, (model,) * 4) for model in ("cnn2", "resnet8") for name in ("codream", "fedavg")
    ]
    assert all(cell.rounds == 1 and cell.learning["local_epochs"] == 0 for cell in cells)


def test_written_configuration_gives_the_same_cells(tmp_path: Path) -> None:
    made = grid(
        compare={"algorithms": ["codream", "quick"], "partitions": ["dirichlet:0.5"], "patience": 2},
        variants={"quick": {"algorithm": "codream", "learning": {"warm_up_epochs": 1}}},
        communication={"models": ["cnn2"]},
    )
    path = tmp_path / "config.toml"
    path.write_text(made.to_toml())
    again = read_grid(path, {})
    assert [cell.digest for cell in again.cells] == [cell.digest for cell in made.cells]
    assert again.to_toml() == made.to_toml()


@pytest.mark.parametrize(
    "tables",
    [
        {"compare": {"rounds": 2}},
        {"compare": {"per_client": 11}},
        {"compare": {"patience": 1}},
        {"compare": {"models": "mlp"}},
        {"learning": {"lr": 0.03}},
        {"learning": {"loss": {"alpha_bn": 0.5}}},
        {"dreams": {"batch": 64}},
        {"aggregation": {"value_bits": 12}},
        {"data": {"augment": "shift"}},
    ],
)
def test_digest_changes_with_all_that_defines_a_cell(tables: dict[str, Any]) -> None:
    assert grid(**tables).cells[0].digest != grid().cells[0].digest


def other_code(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(origins, "_code_digest", lambda: "another")


def other_pillow(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        "secure_codream.experiments.origins.versions_of",
        lambda *names, python: {**versions_of(*names, python=python), "pillow": "1"},
    )


@pytest.mark.parametrize(("change", "said"), [(other_code, "the code of Secure CoDream"), (other_pillow, "pillow (")])
def test_digest_changes_with_code_and_libraries(
    monkeypatch: pytest.MonkeyPatch, change: Callable[[pytest.MonkeyPatch], None], said: str
) -> None:
    before = grid().cells[0]
    change(monkeypatch)
    after = grid().cells[0]
    assert after.digest != before.digest and after.title == before.title
    (found,) = origins.differences(before.origins, after.origins)
    assert found.startswith(said)


def test_digest_changes_with_the_images_in_a_file(tmp_path: Path) -> None:
    def write(file: Path, seed: int) -> None:
        rng = np.random.default_rng(seed)
        sizes = {"train": 60, "test": 20}
        images = {f"{part}_images": rng.integers(0, 256, (size, 8, 8), np.uint8) for part, size in sizes.items()}
        labels = {f"{part}_labels": np.arange(size) % 2 for part, size in sizes.items()}
        np.savez(file, **images, **labels)

    found = []
    for seed in (0, 0, 1):
        write(tmp_path / "scans.npz", seed)
        found.append(grid(data={"source": str(tmp_path / "scans.npz")}).cells[0])
    first, same, other = found
    assert first.digest == same.digest != other.digest
    assert origins.differences(first.origins, other.origins) == ["the images"]
    assert origins.images_in("digits") == {}, "a known set is what its name says"


def test_images_of_a_folder_are_all_files_that_are_not_hidden(tmp_path: Path) -> None:
    (tmp_path / "cats").mkdir()
    (tmp_path / "cats" / "1.png").write_bytes(b"one")
    (tmp_path / "dogs").symlink_to(tmp_path / "cats")  # the loader follows links, too
    found = [origins.images_in(str(tmp_path))]
    (tmp_path / "cats" / ".DS_Store").write_bytes(b"a tool's")
    found.append(origins.images_in(str(tmp_path)))
    (tmp_path / "cats" / "1.png").rename(tmp_path / "cats" / "2.png")
    found.append(origins.images_in(str(tmp_path)))
    (tmp_path / "cats" / "2.png").write_bytes(b"two")
    found.append(origins.images_in(str(tmp_path)))
    assert found[0] == found[1] and len({str(one) for one in found}) == 3
    with pytest.raises(ConfigError, match=r"data.source: .* cannot be read"):
        origins.images_in(str(tmp_path / "birds"))


def test_digest_changes_with_own_code_of_every_kind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.path", [str(tmp_path), *sys.path])
    for name in ("its_model", "its_start"):
        monkeypatch.delitem(sys.modules, name, raising=False)
        (tmp_path / f"{name}.py").write_text("def make(*given):\n    ...\n")
    names = ["codream", "cnn2", "its_model:make", "its_start:make"]
    before = origins.own_code(names)
    assert list(before) == ["own code in its_model", "own code in its_start"]
    (tmp_path / "its_start.py").write_text("def make(*given):\n    return None\n")
    assert origins.differences(before, origins.own_code(names)) == ["own code in its_start"]
    with pytest.raises(ConfigError, match="its_loss: importing 'its_loss' failed: ModuleNotFoundError"):
        origins.own_code(["its_loss:make"])
    for package in ("its_loss", "its_model", "its_start"):
        monkeypatch.delitem(sys.modules, package, raising=False)
    assert origins.own_code(names)["own code in its_start"] not in before.values()


def test_a_cell_knows_whichever_of_its_parts_may_be_own_code(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(EXAMPLES)
    variants = {
        "taught": {"algorithm": "codream", "options": {"student": "own_parts:build"}},
        "ring": {"algorithm": "dp-sgd", "options": ring("own_parts:linear")},
    }
    made = grid(compare={"algorithms": [*variants, "isolated"], "models": ["cnn2_gn"]}, variants=variants)
    *own, isolated = made.cells[:3]
    for cell in own:
        assert "own code in own_parts" in cell.origins and cell.origins_here() == cell.origins
    assert "own code in own_parts" not in isolated.origins


def test_own_code_that_was_loaded_before_an_edit_was_undone_is_not_taken_for_the_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.path", [str(tmp_path), *sys.path])
    monkeypatch.delitem(sys.modules, "its_layer", raising=False)
    file, found = tmp_path / "its_layer.py", []
    for source in ("EDITED = True\n", "EDITED = False\n"):
        file.write_text(source)
        found.append(origins.own_code(["its_layer:make"]))
    monkeypatch.delitem(sys.modules, "its_layer")  # a new process
    found.append(origins.own_code(["its_layer:make"]))
    assert len({str(one) for one in found}) == 3, "what runs is the edited code, whatever the file is"


def test_code_that_is_loaded_after_an_edit_has_no_digest_of_another(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "part.py"
    monkeypatch.setattr(origins, "code_files", lambda: [("part", file)])
    monkeypatch.setattr(origins, "_CODE_SEEN", {})

    def found(*loaded: str) -> str:
        for name in loaded:
            monkeypatch.setitem(sys.modules, f"{origins.ROOMS[-1]}.{name}", ModuleType(name))
        return origins.program()[origins.CODE]

    file.write_text("old")
    old = found("first")
    file.write_text("edited")
    assert found() == old, "a process goes on as it was loaded"
    mixed = found("second")
    file.write_text("old")
    assert found() == mixed and found("third") == mixed, "an edit that is undone stays in what was loaded"
    monkeypatch.setattr(origins, "_CODE_SEEN", {})
    assert found("fourth") == old != mixed


def test_images_are_read_again_once_they_have_changed(tmp_path: Path) -> None:
    path = tmp_path / "scans.npz"

    def read(seed: int) -> float:
        rng = np.random.default_rng(seed)
        images = {f"{part}_images": rng.integers(0, 256, (60, 8, 8), np.uint8) for part in ("train", "test")}
        np.savez(path, **images, train_labels=np.arange(60) % 2, test_labels=np.arange(60) % 2)
        cell = grid(data={"source": str(path)}).cells[0]
        return float(problem_of(cell).test.images.sum())

    first = read(0)
    assert read(1) != first == read(0)


def test_auto_is_decided_when_the_comparison_is_begun(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    monkeypatch.setattr("torch.backends.mps.is_available", lambda: False)
    flags = {"compare": {**SMALL, "device": "auto"}}
    here, there, hidden = (read_grid(None, flags, elsewhere=elsewhere) for elsewhere in (None, "cuda", "cpu"))
    assert [made.cells[0].device for made in (here, there, hidden)] == ["cpu", "cuda", "cpu"]
    assert here.cells[0].digest == hidden.cells[0].digest == grid().cells[0].digest != there.cells[0].digest
    path = tmp_path / "config.toml"
    path.write_text(there.to_toml())
    again = read_grid(path, {}, elsewhere="cuda")
    assert [cell.digest for cell in again.cells] == [cell.digest for cell in there.cells]
    with pytest.raises(ConfigError, match=r"compare\.device: .*'gpu'"):
        read_grid(None, {"compare": {"device": "gpu"}}, elsewhere="cuda")


def test_code_that_computes_rows_needs_none_that_only_shows_them() -> None:
    files = dict(origins.code_files())
    rooms = {name.partition("/")[0] for name in files}
    assert rooms == set(origins.ROOMS)
    assert "secure_codream.experiments/algorithms/codream.py" in files
    assert "codream_clients/learning/participant.py" in files
    shown = "|".join(origins.SHOWING)
    for name, file in files.items():
        source = file.read_text("utf-8")
        if not name.startswith("secure_codream.experiments/") or "workers" in name:
            continue
        assert not re.search(rf"secure_codream\.experiments\.({shown})\b", source), name
        found = set(re.findall(r"from secure_codream\.(\w+)", source))
        assert found <= {"configuration", "simulation", "experiments", "reports", "extras"}, name


def test_digest_does_not_depend_on_names_and_neighbours() -> None:
    other = grid(compare={"name": "other", "algorithms": ["isolated", "fedavg"], "seeds": [0, 5]})
    assert other.cells[0].digest == grid().cells[0].digest


def test_digest_does_not_depend_on_where_an_algorithms_code_lies() -> None:
    """Results are kept under the registered name, so that a class may move to another module."""
    cell = grid().cells[0]
    assert "secure_codream" not in cell.entry.name
    assert replace(cell, entry=replace(cell.entry, reference="elsewhere:Isolated")).digest == cell.digest
    assert replace(cell, entry=replace(cell.entry, name="other")).digest != cell.digest


def test_flags_overrule_the_file(tmp_path: Path) -> None:
    path = tmp_path / "comparison.toml"
    path.write_text(tomli_w.dumps({"compare": {**SMALL, "algorithms": ["isolated"], "rounds": 7}}))
    assert read_grid(path, {"compare": {"rounds": 2}, "data": {}}).cells[0].rounds == 2
    with pytest.raises(ConfigError, match=r"comparison\.toml: compare\.algorithms: found 'x'"):
        read_grid(path, {"compare": {"algorithms": ["x"]}})


def test_unreadable_files(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="found no such file"):
        read_grid(tmp_path / "missing.toml", {})
    (tmp_path / "bad.toml").write_text("compare = [")
    with pytest.raises(ConfigError, match="found no valid TOML"):
        read_grid(tmp_path / "bad.toml", {})


@pytest.mark.parametrize("path", sorted(EXAMPLES.glob("compare-*.toml")), ids=lambda path: path.stem)
def test_examples_are_valid(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(path.parent)  # where `own_parts` is
    content = tomllib.loads(path.read_text())
    config = CompareConfig.model_validate(content)
    digits = {"compare": {"device": "cpu", **SMALL}, "data": {"source": "digits"}}
    made = read_grid(path, digits)
    assert {cell.algorithm for cell in made.cells} | set(made.not_applicable) >= set(config.compare.algorithms)


def test_the_ablations_take_apart_what_the_table_of_starts_has(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(EXAMPLES)
    digits = {"compare": {"seeds": [0], "per_client": 10}, "data": {"source": "digits"}}
    starts, parts = (read_grid(EXAMPLES / f"compare-mnist-{name}.toml", digits) for name in ("starts", "ablations"))
    whole = {cell.digest for cell in starts.cells if cell.algorithm == "codream-strokes"}
    assert whole == {cell.digest for cell in parts.cells if cell.algorithm == "codream"} and len(whole) == 3
    secure = {cell.algorithm: cell.dreams.steps + cell.dreams.matched for cell in parts.cells}
    assert secure["codream-labels"] == 0, "the labels are the one step, beside the metrics"
    four = [cell for cell in parts.cells if cell.algorithm == "codream-four-calibrated"]
    assert {cell.learning["label_deviation"] for cell in four} == {6.0}, "one calibration for every partition"
    assert len({cell.partition for cell in four}) == 3 and len(set(four[0].models)) == 4


def test_the_ablations_on_cifar10_differ_in_start_and_dreaming_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(EXAMPLES)
    digits = {"compare": {"seeds": [0], "per_client": 10}, "data": {"source": "digits"}}
    starts, parts = (read_grid(EXAMPLES / f"compare-cifar10-{name}.toml", digits) for name in ("starts", "ablations"))
    whole = next(cell for cell in starts.cells if cell.algorithm == "codream-photos")
    assert all(cell.learning == whole.learning and cell.dreams.matched for cell in parts.cells)
    assert {cell.algorithm: cell.dreams.start for cell in parts.cells} == {
        "codream": "photos",
        "start-alone": "photos",
        "dreams-alone": "noise",
        "noise-alone": "noise",
    }


def test_references_on_cifar10_train_as_long_as_in_the_table_of_a_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(EXAMPLES)
    digits = {"compare": {"seeds": [0], "per_client": 10}, "data": {"source": "digits"}}
    starts, cpu = (read_grid(EXAMPLES / f"compare-cifar10-{name}.toml", digits) for name in ("starts", "cpu"))
    epochs = {cell.algorithm: cell.learning["distil_epochs"] for cell in starts.cells}
    assert epochs.pop("codream-photos") == epochs.pop("codream-photos-calibrated") == 4
    assert epochs == {
        cell.algorithm: cell.learning["distil_epochs"] for cell in cpu.cells if cell.algorithm != "codream"
    }


def test_fewer_updates_may_move_a_pixel_as_far() -> None:
    made = read_grid(EXAMPLES / "compare-steps.toml", {"compare": {"seeds": [0]}})
    usual = next(cell for cell in made.cells if cell.algorithm == "codream")
    for cell in made.cells:
        assert cell.learning["local_steps"] * cell.dreams.steps == 100
        if cell.dreams.steps <= usual.dreams.steps:
            assert cell.dreams.update_clip * cell.dreams.steps == usual.dreams.update_clip * usual.dreams.steps


WRITTEN = (
    r"`secure-codream ((?:compare|sweep) examples/[^`]*)`",
    r"(?m)^(?:#   )?secure-codream ((?:compare|sweep) examples/.*(?:(?<=\\)\n.*)*)",
)
"""Commands within a sentence, and those with a line of their own."""
COMMANDS = [
    (page.name, shlex.split(found.replace("\\\n", " "), comments=True))
    for page in sorted([ROOT / "README.md", *ROOT.glob("docs/*.md"), *EXAMPLES.glob("*.toml")])
    for form in WRITTEN
    for found in re.findall(form, page.read_text(encoding="utf-8"))
]


@pytest.mark.parametrize(("page", "words"), COMMANDS, ids=[f"{page}, {words[1]}" for page, words in COMMANDS])
def test_commands_of_pages_and_examples_can_be_typed_and_name_algorithms_that_there_are(
    page: str, words: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(ROOT)
    command = get_command(app).commands[words[0]]  # type: ignore[attr-defined]
    given = command.make_context(words[0], words[1:]).params
    table = CompareConfig.model_validate(tomllib.loads(given["config"].read_text("utf-8")))
    asked = given["algorithms"].split(",") if given["algorithms"] else []
    assert set(asked) <= {*ALGORITHMS, *table.variants}
    assert given["against"] is None or given["against"] in (asked or table.compare.algorithms)
