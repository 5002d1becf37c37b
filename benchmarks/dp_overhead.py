"""What differentially private training costs against training without privacy, at the same batch size, on one thread.

python benchmarks/dp_overhead.py                          # the zoo's small models with group norm; a Markdown table
python benchmarks/dp_overhead.py --models cnn2_gn --batch 256

Both train with Poisson batches or shuffled ones of the same expected size, on images of 1x28x28. They take turns, so
that whatever else the machine does slows both; times are processor time, and the median over the turns.
"""

import argparse
import time
import warnings
from dataclasses import replace
from statistics import median

import numpy as np
import torch

from codream_clients.data.datasets import LabelledImages
from codream_clients.learning.local_work import train_epochs
from codream_clients.learning.settings import LearningSettings
from codream_clients.learning.training import ConvergenceWarning
from codream_clients.models.zoo import build
from codream_clients.privacy.noise import NoiseSource
from codream_clients.privacy.plan import PrivacySettings, plan_privacy
from codream_clients.privacy.training import private_sgd

MODES = ("hooks", "ghost")
CPU = torch.device("cpu")


def random_images(count: int) -> LabelledImages:
    """Images like MNIST's in form; their content makes no difference to time."""
    rng = np.random.default_rng(0)
    return LabelledImages(rng.standard_normal((count, 1, 28, 28)).astype(np.float32), rng.integers(0, 10, count), 10)


def seconds_plain(name: str, data: LabelledImages, batch: int) -> float:
    model = build(name, channels=1, size=28, classes=10, seed=0)
    started = time.process_time()
    settings = LearningSettings(batch_size=batch, lr=0.01, momentum=0.0, weight_decay=0.0)
    train_epochs(model, data, settings, epochs=1, seed=0, device=CPU)
    return time.process_time() - started


def seconds_private(name: str, data: LabelledImages, batch: int, mode: str, physical: int) -> float:
    settings = PrivacySettings(epsilon=8.0, batch_size=batch, warm_up_epochs=1)
    plan = plan_privacy(settings, records=len(data), rounds=0)
    plan = replace(plan, settings=replace(settings, mode=mode, physical_batch=physical))
    model = build(name, channels=1, size=28, classes=10, seed=0)
    counts = data.class_counts.astype(np.float32)
    steps, stream = len(data) // batch, NoiseSource(1).stream(0)
    started = time.process_time()
    private_sgd(model, data, plan=plan, steps=steps, class_counts=counts, stream=stream, device=CPU)
    return time.process_time() - started


def main() -> None:
    """Measure, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", default=["cnn2_strided_gn", "cnn2_gn", "lenet_gn"])
    parser.add_argument("--batch", type=int, default=512)
    parser.add_argument("--physical", type=int, nargs="+", default=[128, 512])
    parser.add_argument("--steps", type=int, default=4)
    parser.add_argument("--turns", type=int, default=3)
    options = parser.parse_args()
    torch.set_num_threads(1)
    warnings.simplefilter("ignore", ConvergenceWarning)  # there is nothing to learn from noise
    data = random_images(options.steps * options.batch)
    ways = [(mode, physical) for mode in MODES for physical in options.physical]
    print(f"Milliseconds of a step of {options.batch} images; in brackets, times the step without privacy.\n")
    print("| model | no privacy | " + " | ".join(f"{mode}, {physical} at a time" for mode, physical in ways) + " |")
    print("|---" * (len(ways) + 2) + "|")
    for name in options.models:
        seconds_private(name, data.subset(np.arange(options.batch)), options.batch, *ways[0])  # warm caches
        turns = [
            (
                seconds_plain(name, data, options.batch),
                *(seconds_private(name, data, options.batch, *way) for way in ways),
            )
            for _ in range(options.turns)
        ]
        plain, *private = (1000 / options.steps * median(column) for column in zip(*turns, strict=True))
        cells = [f"{cost:.0f} ({cost / plain:.2f})" for cost in private]
        print(f"| {name} | {plain:.0f} | " + " | ".join(cells) + " |", flush=True)


if __name__ == "__main__":
    main()
