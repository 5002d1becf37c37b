"""Does a site end below what it had alone? Three sites of unequal size and unequal shares of classes, over ten seeds.

python benchmarks/unequal_sites.py out.jsonl --mnist ../shared/data --cifar10 ../shared/data/cifar10_jpeg.npz
python benchmarks/unequal_sites.py before.jsonl --unguarded ...   # no gradient cut, nothing held back or rolled back
python benchmarks/unequal_sites.py halves.jsonl --lacking ...     # ten classes, of which each site has five

Digits, MNIST and CIFAR-10 (an .npz with MedMNIST's keys), of each the first two, three, five and nine classes; images
of the last two are halved in size, so that all of it takes half an hour of a core. Sites have about a fifth, three
tenths and half of the images, of each class a share of its own (Dirichlet, concentration 3), and train a cnn2, an mlp
and a cnn2. Settings are the defaults but for fewer epochs and dreams. A run that is in the file is not made again; a
file has runs of one kind, and is refused with other flags than it was begun with.

A site ends below itself if its accuracy on test images after the last round is lower than after the warm-up, by more
than two standard errors of the warm-up's accuracy on the images that are held back. A site that has too few to hold
some back is judged by those that it trains on; its standard error is then that of a held-back part of `LEAST_IMAGES`
images' tenth.
"""

import argparse
import json
import warnings
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from codream_clients.data.datasets import LabelledImages
from codream_clients.data.held_back import LEAST_IMAGES, hold_back
from codream_clients.data.pixels import RawImages
from codream_clients.data.sources import load_source
from codream_clients.learning.judge import Judge, SeenScore
from codream_clients.learning.participant import LearningSettings, Participant
from codream_clients.learning.training import ConvergenceWarning
from codream_clients.models.zoo import build
from codream_protocols.courses.codream import CoDream, DreamSettings
from codream_protocols.starts import start_rule
from secure_codream.simulation.in_process import DreamFederation

SOURCES, CLASSES = ("digits", "mnist", "cifar10"), (2, 3, 5, 9)
MODELS, SHARES, CONCENTRATION = ("cnn2", "mlp", "cnn2"), np.array([0.2, 0.3, 0.5]), 3.0
MOST, TEST, ROUNDS = 900, 600, 3
LACKING = ({0, 1, 2, 3, 4}, {3, 4, 5, 6, 7}, {6, 7, 8, 9, 0})
LEARNING = LearningSettings(warm_up_epochs=20, distil_epochs=10, local_epochs=5)
DREAMS: dict[str, Any] = {"steps": 5, "batch": 64}
CPU = torch.device("cpu")


def everything(source: str, options: argparse.Namespace) -> LabelledImages:
    """The training part of a source, halved in size unless it is as small as digits."""
    place = str(options.cifar10) if source == "cifar10" else source
    found = load_source(place, root=options.mnist).train
    if not isinstance(found, RawImages):
        return found
    count, height, width, channels = found.pixels.shape
    halved = found.pixels.reshape(count, height // 2, 2, width // 2, 2, channels).mean(axis=(2, 4))
    return LabelledImages(
        np.moveaxis((halved / 255 - 0.5) / 0.25, -1, 1).astype(np.float32), found.labels, found.classes
    )


def deal(data: LabelledImages, classes: int, seed: int) -> tuple[list[LabelledImages], LabelledImages]:
    """What each site has of the first classes, and the test images."""
    rng = np.random.default_rng([seed, classes])
    order = rng.permutation(np.flatnonzero(data.labels < classes))
    few = replace(data.subset(order), classes=classes)
    test = min(TEST, len(few) // 3)
    sites: list[list[int]] = [[] for _ in SHARES]
    for label in range(classes):
        own = test + np.flatnonzero(few.labels[test : test + MOST] == label)
        ends = np.rint(np.cumsum(rng.dirichlet(CONCENTRATION * SHARES))[:-1] * len(own)).astype(int)
        for site, part in zip(sites, np.split(own, ends), strict=True):
            site.extend(part.tolist())
    return [few.subset(np.array(site, dtype=np.int64)) for site in sites], few.subset(np.arange(test))


def deal_lacking(data: LabelledImages, classes: int, seed: int) -> tuple[list[LabelledImages], LabelledImages]:
    """150 images of five classes for each site, three classes of which another site has too; and the test images."""
    few = data.subset(np.random.default_rng([seed, classes]).permutation(len(data.labels)))
    left = list(range(TEST, len(few)))
    sites: list[LabelledImages] = []
    for held in LACKING:
        own = [at for at in left if few.labels[at] in held][: MOST // 6]
        left = sorted(set(left) - set(own))
        sites.append(few.subset(np.array(own, dtype=np.int64)))
    return sites, few.subset(np.arange(TEST))


def run(data: LabelledImages, classes: int, seed: int, *, guarded: bool, lacking: bool = False) -> list[dict[str, Any]]:
    """Each site of one federation: its images, its accuracy alone and in the end, and what its judge did."""
    sites, test = (deal_lacking if lacking else deal)(data, classes, seed)
    settings = LEARNING if guarded else replace(LEARNING, distil_clip=0.0)
    clients = []
    for number, (name, own) in enumerate(zip(MODELS, sites, strict=True)):
        kept, held = hold_back(own, settings.held_back, seed) if guarded else (own, None)
        judge = Judge(kept if held is None else held, CPU, held_back=held is not None)
        model = build(name, channels=test.shape[0], size=test.shape[1], classes=classes, seed=seed)
        client_seed = 1000 * seed + number
        clients.append(Participant(settings, model, kept, test, client_seed, CPU, judge=judge, rolls_back=guarded))
    dreams = DreamSettings(rounds=ROUNDS, shape=test.shape, classes=classes, **DREAMS)
    federation = DreamFederation(clients, CoDream(dreams, start_rule("noise")), seed=seed)
    federation.warm_up()
    begun = [asdict(client.metrics) for client in clients if client.metrics is not None]
    rounds: list[list[dict[str, Any]]] = []
    for _ in range(ROUNDS):
        federation.round()
        rounds.append([asdict(client.metrics) for client in clients if client.metrics is not None])
    return [
        {
            "images": len(own),
            "held_back": first["judged_by"] if first["held_back"] else 0,
            "alone": first["accuracy"],
            "end": rounds[-1][number]["accuracy"],
            "error": _error(first),
            "worse": [at + 1 for at, found in enumerate(rounds) if found[number]["worse"]],
            "rolled_back": [at + 1 for at, found in enumerate(rounds) if found[number]["rolled_back"]],
        }
        for number, (own, first) in enumerate(zip(sites, begun, strict=True))
    ]


def _error(first: dict[str, Any]) -> float:
    images = first["judged_by"] if first["held_back"] else LEAST_IMAGES // 10
    share = first["held_accuracy"] if first["held_back"] else first["accuracy"]
    return SeenScore(round(share * images), images, 0.0, 0.0, 0.0).standard_error


def table(records: list[dict[str, Any]]) -> None:
    """A Markdown table, a line for each source and number of classes."""
    print("| images | classes | runs | alone | in the end | rolled back | below by two s.e. |")
    print("|---|---|---|---|---|---|---|")
    groups = sorted({(SOURCES.index(record["source"]), record["classes"]) for record in records})
    for source, classes in groups:
        runs = [record for record in records if (record["source"], record["classes"]) == (SOURCES[source], classes)]
        sites = [site for record in runs for site in record["sites"]]
        below = [site for site in sites if site["end"] < site["alone"] - 2 * site["error"]]
        means = [f"{np.mean([site[name] for site in sites]):.3f}" for name in ("alone", "end")]
        back = sum(len(site["rolled_back"]) for site in sites)
        print(f"| {SOURCES[source]} | {classes} | {len(runs)} | {' | '.join(means)} | {back} | {len(below)} of "
              f"{len(sites)} |")  # fmt: skip
        for site in below:
            print(f"    below: {site}")


def read(path: Path, kind: dict[str, bool]) -> list[dict[str, Any]]:
    """The runs that are in the file, none if there is none.

    Raises:
        ValueError: they are of another kind than `kind`.
    """
    records = [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []
    for record in records:
        if (found := {name: record.get(name) for name in kind}) != kind:
            raise ValueError(f"{path}: found runs with {found}; {kind} is asked for: name another file")
    return records


def main() -> None:
    """Make what is missing in the file, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("--mnist", type=Path)
    parser.add_argument("--cifar10", type=Path)
    parser.add_argument("--seeds", type=int, default=10)
    parser.add_argument("--unguarded", action="store_true")
    parser.add_argument("--lacking", action="store_true")
    options = parser.parse_args()
    torch.set_num_threads(1)
    warnings.simplefilter("ignore", ConvergenceWarning)
    sources = [name for name in SOURCES if name == "digits" or getattr(options, name) is not None]
    kind = {"unguarded": options.unguarded, "lacking": options.lacking}
    try:
        records = read(options.out, kind)
    except ValueError as error:
        parser.error(str(error))
    done = {(record["source"], record["classes"], record["seed"]) for record in records}
    images = {source: everything(source, options) for source in sources}
    for seed in range(options.seeds):
        for classes in (10,) if options.lacking else CLASSES:
            for source in sources:
                if (source, classes, seed) in done:
                    continue
                found = run(images[source], classes, seed, guarded=not options.unguarded, lacking=options.lacking)
                records.append({"source": source, "classes": classes, "seed": seed, **kind, "sites": found})
                with options.out.open("a") as file:
                    file.write(json.dumps(records[-1]) + "\n")
    table(records)


if __name__ == "__main__":
    main()
