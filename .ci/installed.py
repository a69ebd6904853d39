"""Tries the installed package, run in an empty folder: the README's Python lines and the zoo's commands, shortened.

python .ci/installed.py README.md
"""

import re
import subprocess
import sys
from importlib.metadata import version
from importlib.resources import files
from pathlib import Path
from typing import Any

from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.off_policy_algorithm import OffPolicyAlgorithm

import sb3_flow
from sb3_flow.zoo.registration import ALGORITHMS

LEARNING_STARTS, STEPS = 100, 110
ENV = "Pendulum-v1"  # whose rows in the YAMLs learn from step 1,000 on
NEEDS_DATA = "offline_dataset"


def check_files() -> None:
    """Everything that is no code is there too, and nothing of the checkout is in the way."""
    package = Path(sb3_flow.__file__).parent
    assert "site-packages" in package.parts, f"{package} is not installed"
    assert version("sb3_flow") == sb3_flow.__version__
    assert files("sb3_flow").joinpath("py.typed").is_file()
    for algo in ALGORITHMS:
        assert files("sb3_flow.hyperparams").joinpath(f"{algo}.yml").is_file(), algo


def run_readme(readme: Path) -> None:
    """Run every Python block but those that need data, with few steps and short evaluations."""
    learn = OffPolicyAlgorithm.learn

    def learn_a_little(self: OffPolicyAlgorithm, total_timesteps: float, *args: Any, **kwargs: Any) -> BaseAlgorithm:
        self.learning_starts = min(self.learning_starts, LEARNING_STARTS)
        return learn(self, min(int(total_timesteps), STEPS), *args, **kwargs)

    OffPolicyAlgorithm.learn = learn_a_little  # type: ignore[method-assign,assignment]
    blocks = re.findall(r"```python\n(.+?)```", readme.read_text(), re.DOTALL)
    assert blocks
    for block in blocks:
        if NEEDS_DATA not in block:
            print(block, flush=True)
            exec(compile(block, str(readme), "exec"), {})


def zoo(script: str, algo: str, *args: str) -> None:
    command = [sys.executable, "-m", f"rl_zoo3.{script}", "--algo", algo, "--env", ENV, *args]
    print("$", *command[1:], flush=True)
    subprocess.run(command, check=True)


def run_zoo() -> None:
    """Train, look at and go on with every algorithm; search with one."""
    for algo in ALGORITHMS:
        zoo("train", algo, "-n", "1010", "--num-threads", "1")
        zoo("enjoy", algo, "-f", "logs", "-n", "200", "--no-render")
        zoo("train", algo, "-i", f"logs/{algo}/{ENV}_1/{ENV}.zip", "-n", "10", "--num-threads", "1")
    zoo("record_video", "sac_flow", "-f", "logs", "--exp-id", "1", "-n", "20")
    search = ("-optimize", "-n", "120", "--n-trials", "2", "--n-evaluations", "1", "--no-optim-plots")
    zoo("train", "sac_flow", *search, "--num-threads", "1", "-params", "learning_starts:100")


if __name__ == "__main__":
    check_files()
    run_readme(Path(sys.argv[1]))
    run_zoo()
    print(f"sb3_flow {sb3_flow.__version__} with {len(ALGORITHMS)} algorithms: files, README and zoo are in order")
