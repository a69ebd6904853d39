"""What holding a policy to the data makes of two equally good actions in one state: figure and table.

    python benchmarks/two_modes.py --figure docs/images/two_modes.png

4,000 rows of one state with actions around ±0.7, all rewards equal; each policy learns from them alone, with tiny
nets. A share is that of 2,000 sampled actions within 0.2 of a mode.
"""

import argparse
import csv
from itertools import product
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import torch as th
from arguments import positive
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import NDArray
from records import append_record
from shapes import Shapes

from sb3_flow import FQL, SACFlow
from sb3_flow.common.off_policy import OffPolicyFlowAlgorithm

MODE, SPREAD, ROWS = 0.7, 0.05, 4_000
NEAR, SAMPLES = 0.2, 2_000
Contender = Literal["data", "behavior", "fql"]
LABELS: dict[Contender, str] = {
    "data": "Eq. 12: the replayed action",
    "behavior": "behaviour flow, same noise",
    "fql": "FQL: one step of it, same noise",
}


class OneState(Shapes):
    """The environment of the data; nothing is ever done in it."""

    def __init__(self) -> None:
        super().__init__(1, 1)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> Any:
        """Start an episode."""
        super().reset(seed=seed)
        return np.zeros(1, np.float32), {}


class Shares(NamedTuple):
    """Of the sampled actions."""

    low: float  # near the mode at -0.7
    high: float
    between: float  # nearer to 0 than to either


def shares_of(actions: NDArray[Any]) -> Shares:
    """Where actions (N, 1) in [-1, 1] are."""
    low, high = (float(np.mean(np.abs(actions - mode) < NEAR)) for mode in (-MODE, MODE))
    return Shares(low, high, float(np.mean(np.abs(actions) < MODE / 2)))


def data(rows: int = ROWS) -> dict[str, NDArray[Any]]:
    """One state, in which two actions are equally good; every episode is one step.

    :param rows: number of them
    """
    rng = np.random.default_rng(0)
    modes = rng.choice([-MODE, MODE], (rows, 1))
    state = np.zeros((rows, 1), np.float32)
    return {
        "observations": state,
        "next_observations": state,
        "actions": np.clip(rng.normal(modes, SPREAD), -1, 1).astype(np.float32),
        "rewards": np.ones(rows, np.float32),
        "masks": np.zeros(rows, np.float32),
        "terminals": np.ones(rows, np.bool_),
    }


def train(
    contender: Contender, bc_coef: float, updates: int, policy: str = "FlowTPolicy", **settings: Any
) -> NDArray[Any]:
    """Actions of the policy that was trained, (2000, 1).

    :param contender: "data" or "behavior" for SACFlow's proximity, or "fql"
    :param bc_coef: beta of SAC Flow, alpha of FQL
    :param updates: from the data
    :param policy: SACFlow's
    :param settings: in place of what is set here
    """
    common = {
        "env": OneState(),
        "offline_dataset": data(),
        "bc_coef": bc_coef,
        "learning_rate": lambda left: 3e-3 * left,
        "batch_size": 256,
        "buffer_size": 10,
        "device": "cpu",
        **settings,
    }
    model: OffPolicyFlowAlgorithm
    if contender == "fql":
        model = FQL("FQLPolicy", policy_kwargs={"net_arch": [64, 64]}, **common)
    else:
        nets: dict[str, Any] = {"d_model": 32} if policy == "FlowTPolicy" else {}
        arch = {"qf": [64, 64]} | ({} if policy == "FlowTPolicy" else {"pi": [64, 64]})
        nets |= {"critic": "target", "noise_std": 0.1, "net_arch": arch}
        model = SACFlow(policy, proximity=contender, ent_coef=0.0, policy_kwargs=nets, **common)
    model.learn_offline(updates)
    actions, _ = model.predict(np.zeros((SAMPLES, 1), np.float32))
    return actions


def draw(axes: Axes, actions: NDArray[Any], title: str) -> None:
    """A policy's actions over those of the data."""
    bins = np.linspace(-1, 1, 81).tolist()
    axes.hist(data()["actions"].ravel(), bins, density=True, color="#bbbbbb", label="data")
    axes.hist(actions.ravel(), bins, density=True, histtype="step", color="#0b6e99", lw=1.6, label="policy")
    axes.set_title(title, fontsize=10)
    axes.set(yticks=[], xlim=(-1, 1))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--weights", nargs="+", type=float, default=[1.0, 10.0, 300.0], help="beta, or alpha of FQL")
    parser.add_argument("--updates", type=positive, default=2_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/two_modes.csv"))
    parser.add_argument("--figure", type=Path, default=Path("docs/images/two_modes.png"))
    args = parser.parse_args()
    th.set_num_threads(1)
    args.out.parent.mkdir(parents=True, exist_ok=True)
    figure = Figure(figsize=(9, 5.4), layout="constrained")
    panels = np.atleast_2d(figure.subplots(len(args.weights), len(LABELS), sharex=True))
    with open(args.out, "w", newline="") as file:
        table = csv.writer(file)
        table.writerow(["contender", "bc_coef", *Shares._fields])
        for (column, contender), (row, weight) in product(enumerate(LABELS), enumerate(args.weights)):
            actions = train(contender, weight, args.updates, seed=args.seed)
            symbol = r"$\alpha$" if contender == "fql" else r"$\beta$"
            title = f"{symbol} = {weight:g}"
            draw(panels[row, column], actions, title if row > 0 else f"{LABELS[contender]}\n{title}")
            table.writerow([contender, weight, *(f"{share:.3f}" for share in shares_of(actions))])
            file.flush()
    append_record(args.out.with_suffix(".jsonl"), {"updates": args.updates, "seed": args.seed})
    panels[0, 0].legend(fontsize=8, loc="upper left", frameon=False)
    for axes in panels[-1]:
        axes.set_xlabel("action")
    args.figure.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(args.figure, dpi=150)


if __name__ == "__main__":
    main()
