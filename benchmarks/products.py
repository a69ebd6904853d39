"""How much an update multiplies: the matrix products of all algorithms, which no machine and no compiler changes.

    python benchmarks/products.py                           # the paper's size, Hopper's dimensions
    python benchmarks/products.py --batch 256 --width 256   # the size that fits a CPU

The mean of six updates, after as many: a net that is updated less often counts by its share. A multiplication and an
addition are two operations. What is done number by number (norms, activations, Adam) is not counted.
"""

import argparse
from pathlib import Path
from typing import Any

from contenders import TIMED, Size, add_sizes, size_of, sizes_of
from timing import write_measured
from torch.utils.flop_counter import FlopCounterMode
from train_step import Learner, make_filled

UPDATES = 6  # every delay of these algorithms divides it


def operations(model: Learner, batch: int) -> float:
    """Millions of operations in the matrix products of an update.

    :param model: it is trained
    :param batch: rows of a batch
    """
    model.train(UPDATES, batch)
    with FlopCounterMode(display=False) as counter:
        model.train(UPDATES, batch)
    total: int = counter.get_total_flops()
    return total / UPDATES / 1e6


def measure(size: Size, args: argparse.Namespace) -> list[dict[str, Any]]:
    """A row for each contender, with its ratio to contrib's CrossQ."""
    models = {name: make_filled(name, size, args) for name in dict.fromkeys(["crossq", *args.contenders])}
    counts = {name: operations(model, size.batch) for name, model in models.items()}
    return [
        {
            "contender": name,
            **sizes_of(models[name], size),
            "million_operations": round(count, 1),
            "to_crossq": round(count / counts["crossq"], 2),
        }
        for name, count in counts.items()
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--env", default="Hopper-v4", help="whose dimensions are taken")
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/mine/products.csv"))
    contenders = ["sac", *TIMED]
    add_sizes(parser, contenders, contenders)
    args = parser.parse_args()
    rows = measure(size_of(args), args)
    for row in rows:
        print(f"{row['contender']:22}{row['million_operations']:12,.1f} million{row['to_crossq']:8}")
    write_measured(rows, args.out)
    print(args.out)


if __name__ == "__main__":
    main()
