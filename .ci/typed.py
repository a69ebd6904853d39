"""Code of a user, for `mypy --strict` against the installed package (.ci/wheel)."""

import numpy as np
from stable_baselines3.common.base_class import BaseAlgorithm

from sb3_flow import FQL, FlowTPolicy, SACFlow

model = SACFlow(FlowTPolicy, "Pendulum-v1", learning_starts=20, policy_kwargs={"flow_steps": 2, "d_model": 16})
learned: SACFlow = model.learn(30)
action, _ = learned.predict(np.zeros((1, 3), np.float32), deterministic=True)
learned.save("pendulum")
loaded: SACFlow = SACFlow.load("pendulum", env="Pendulum-v1")
algorithms: list[type[BaseAlgorithm]] = [SACFlow, FQL]
print(f"{action.shape}, {loaded.num_timesteps} steps, {[algorithm.__name__ for algorithm in algorithms]}")
