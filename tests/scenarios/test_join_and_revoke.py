"""Three sites with keys of their own; then d joins and c is revoked, signed as one change, and the federation goes on.

Every party is a process with a folder of its own, as on machines apart; what passes between them are the files that the
commands name.
"""

from __future__ import annotations

import json
import shutil
import subprocess
from pathlib import Path

import pytest

pytest.importorskip("torch")

from tests.scenarios.study import Study, refused, run
from tests.system.processes import ENVIRONMENT, SECURE_CODREAM, client_command, run_federation

CONFIG = """
[federation]
name = "study"
rounds = {rounds}
[task]
shape = [1, 8, 8]
classes = 10
[dreams]
steps = 1
batch = 4
[learning]
warm_up_epochs = 1
distil_epochs = 1
local_steps = 1
[timing]
lost_after = 5.0
"""
CLIENT = """
name = "{name}"
model = "mlp"
device = "cpu"
[data]
source = "digits"
clients = 4
part = {part}
per_client = 20
"""


def permit_cuts(folder: Path) -> None:
    path = folder / "client.toml"
    path.write_text(path.read_text() + "[policy]\ncuts = true\n")


@pytest.mark.exhaustive
def test_join_and_revoke(tmp_path: Path) -> None:
    study = Study(tmp_path / "study", CONFIG, CLIENT)
    fingerprint = study.begin("abc")
    first = study.charter(1)
    run("roster", "verify", study.server, first, "--administrator", fingerprint, "--accept")
    assert "found no roster.json" in refused("client", study.site("a"))  # nothing unaccepted runs
    for name in "abc":
        study.accept(name, first, "--administrator", fingerprint)
    unfinished = Path(shutil.copytree(study.site("c"), tmp_path / "c"))  # who has finished has no need of the server
    assert run_federation(study.folder, "abc") == 4 * [0]
    batches = {path.name: path.read_bytes() for path in (study.server / "rounds").iterdir()}
    weights = (study.site("a") / "model.safetensors").read_bytes()
    assert "All members have accepted it." in run("verify", study.server)

    # One change, one signature, one serial number; the charter follows the record.
    asked = study.request("d")
    said = run("roster", "change", study.administrator, "--add", asked, "--remove", "c")
    assert "serial 2" in said and "Added: d" in said and "Revoked: c" in said
    second = study.charter(3, "--after", study.server)

    # Whose policy does not permit the cut accepts nothing; told what it would show.
    for name in "ab":
        assert "tell apart a, b; c; d" in refused("roster", "verify", study.site(name), second, "--accept")
        assert (study.site(name) / "journal").is_dir()  # and nothing was touched
    run("roster", "verify", study.server, second, "--accept")
    for name in "abd":
        permit_cuts(study.site(name))
        said = study.accept(name, second, *(["--administrator", fingerprint] if name == "d" else []))
        assert "a charter that cuts a block" in said and "tell apart a, b; c; d" in said

    # c is told, whether it has the new roster or the old one.
    running = subprocess.Popen([*SECURE_CODREAM, "server", study.server, "--listen", "tcp://127.0.0.1:*"])
    try:
        endpoint = study.server / "endpoint"
        endpoint.unlink()
        while not endpoint.exists():
            assert running.poll() is None
        assert "revoked" in refused(*client_command(unfinished, endpoint.read_text())[3:])
    finally:
        running.kill()
        running.wait()
    told = [json.loads(line) for line in (study.server / "events.jsonl").read_text().splitlines()]
    assert any(event.get("code") == "revoked" and event["client"] == "c" for event in told)
    assert "c, revoked by roster serial 2" in refused("roster", "verify", study.site("c"), second, "--accept")
    assert "c, revoked by roster serial 2" in refused("client", study.site("c"))

    # The old roster is taken nowhere, and begins nothing in anybody's folder.
    for party in (study.server, study.site("a"), study.site("b")):
        assert "serial 1" in refused("roster", "verify", party, first, "--accept")
    kept = (study.site("a") / "roster.json").read_bytes()
    shutil.copy(first / "roster.json", study.site("a") / "roster.json")
    assert "serial 1" in refused("client", study.site("a"))
    (study.site("a") / "roster.json").write_bytes(kept)

    # The same folders go on: earlier batches stay, everybody trains anew, one verification spans both charters.
    (study.site("a") / "log.jsonl").unlink()
    assert run_federation(study.folder, "abd") == 4 * [0]
    assert study.events("a").index("warm-up") < study.events("a").index("certified") and "resume" not in study.events(
        "a"
    )
    after = {path.name: path.read_bytes() for path in (study.server / "rounds").iterdir()}
    assert len(after) > len(batches) and all(
        after[name] == content for name, content in batches.items() if name in after
    )
    (aside,) = (study.site("a") / "earlier").iterdir()
    assert (aside / "model.safetensors").read_bytes() == weights
    found = json.loads(run("verify", study.server, "--json"))
    assert found["members"] == ["a", "b", "d"] and found["accepted"] == ["a", "b", "d"] and found["signed"]
    assert [before["members"] for before in found["before"]] == [["a", "b", "c"]]
    assert found["serial"] == 2 and found["earlier"] == found["before"][0]["epochs"]
    heads = {json.loads(run("verify", study.site(name), "--json"))["head"] for name in "abd"}
    assert heads == {found["head"]}
    # One flipped byte in the charter before is found, too.
    (record,) = study.server.glob("earlier/*/record/epoch-00000.record")
    content = bytearray(record.read_bytes())
    content[len(content) // 2] ^= 1
    record.write_bytes(content)
    broken = subprocess.run([*SECURE_CODREAM, "verify", study.server], capture_output=True, text=True, env=ENVIRONMENT)
    assert broken.returncode == 1 and "epoch-00000.record" in broken.stderr
