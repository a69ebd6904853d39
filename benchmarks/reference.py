"""The authors' own training step (JAX), run from a checkout of their repository beside ours.

Their from-scratch scripts hold networks, replay buffer and jitted updates in one file each. Such a file is run here for
zero steps, and what it leaves behind is called as its loop calls it. Nothing of it is copied. It needs
`pip install "jax<0.5" "flax<0.11" optax tyro`.
"""

import contextlib
import os
import runpy
import sys
import tempfile
from pathlib import Path
from typing import Any

import jax
import torch as th
from contenders import Size, fill

SCRIPTS = {
    "flow_t": ("SAC_flow_transformer_jax.py", ["--d-model", "64"]),  # the paper's width; the script's default is 96
    "flow_g": ("SAC_flow_gru_jax.py", []),
    "flow_mlp": ("Naive_sac_flow_jax.py", []),
}


class Reference:
    """A script of the reference as a contender: `train` as SB3's algorithms have it.

    :param policy: "flow_t", "flow_g" or "flow_mlp"
    :param checkout: root of the repository
    :param env_id: environment, for its dimensions
    :param size: the scripts fix the critics' width at 1024
    :param rows: random transitions in the buffer
    :raises ValueError: for another width of the critics, or action chunks
    """

    def __init__(self, policy: str, checkout: Path, env_id: str, size: Size, rows: int):
        if (size.width, size.horizon) != (1024, 1):
            raise ValueError(f"width={size.width}, horizon={size.horizon}: the reference has 1024 and 1 only")
        script, arguments = SCRIPTS[policy]
        options = {
            "env-id": env_id,
            "total-timesteps": 0,
            "buffer-size": rows,
            "batch-size": size.batch,
            "denoising-steps": size.flow_steps,
        }
        # Before the script chooses a GPU of its authors' machine
        os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")
        jax.devices()
        arguments = [*arguments, "--no-track", *(f"--{key}={value}" for key, value in options.items())]
        self.script = _run(checkout.resolve(), checkout.resolve() / "from_scratch_code" / script, arguments)
        self.device = th.device("cpu")
        fill(self.script["rb"])
        self.updates = 0

    def train(self, gradient_steps: int, batch_size: int) -> None:
        """So many updates as the script's loop makes them, finished when this returns."""
        s = self.script
        for _ in range(gradient_steps):
            data = s["rb"].sample(batch_size)
            observations = data.observations.numpy()
            s["qf_state"], *_, s["key"] = s["update_critic"](
                s["actor_state"],
                s["qf_state"],
                s["alpha_state"],
                observations,
                data.actions.numpy(),
                data.next_observations.numpy(),
                data.rewards.flatten().numpy(),
                data.dones.flatten().numpy(),
                s["key"],
            )
            s["qf_state"] = s["update_target"](s["qf_state"], s["args"].tau)
            self.updates += 1
            if self.updates % s["args"].policy_delay == 0:
                s["actor_state"], s["alpha_state"], *_, s["key"] = s["update_actor_and_alpha"](
                    s["actor_state"], s["qf_state"], s["alpha_state"], observations, s["key"]
                )
        jax.block_until_ready((s["actor_state"].params, s["qf_state"].params))


def _run(checkout: Path, script: Path, arguments: list[str]) -> dict[str, Any]:
    """Run a script as the command line would, in a folder that is thrown away, and return its variables."""
    argv, path, environment = sys.argv, sys.path.copy(), os.environ.copy()
    with tempfile.TemporaryDirectory() as scratch, contextlib.chdir(scratch):
        try:
            sys.argv = [str(script), *arguments]
            sys.path.insert(0, str(checkout))
            return runpy.run_path(str(script), run_name="__main__")
        finally:
            sys.argv, sys.path[:] = argv, path
            os.environ.clear()
            os.environ.update(environment)
