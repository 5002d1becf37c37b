"""Three clients with three models dream together, in this process: python examples/local_federation.py"""

from sklearn.datasets import load_digits
from torch import nn

from secure_codream import run_local


def model(width: int) -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(1, width, 3, padding=1),
        nn.BatchNorm2d(width),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(width * 64, 10),
    )


def main(rounds: int = 2) -> None:
    pixels, labels = load_digits(return_X_y=True)
    images = (pixels.reshape(-1, 1, 8, 8) / 8 - 1).astype("float32")
    shards = [(images[start : start + 40], labels[start : start + 40]) for start in (0, 40, 80)]
    test = (images[1000:], labels[1000:])
    run = run_local(
        [model(8), model(16), model(32)],
        shards,
        test,
        classes=10,
        public=True,  # the digits protect nobody
        federation={"rounds": rounds},
        dreams={"batch": 64},
    )
    for number, accuracies in enumerate(run.accuracies):
        print(f"round {number}: " + "  ".join(f"{accuracy:.1%}" for accuracy in accuracies))
    print(f"{run.bytes_up / 3e3:.0f} kB sent by each client")


if __name__ == "__main__":
    main()
