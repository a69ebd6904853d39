"""A chain whose last step is worth 1 and ends it: the value of every state is known."""

from typing import Any

import numpy as np
import pytest
import torch as th
from gymnasium import spaces
from helpers import EVERY_MODEL, FQLS, SAC_FLOWS, RandomEnv, make_variant

LENGTH = 7
GAMMA = 0.9
VALUES = GAMMA ** np.arange(LENGTH - 1, -1, -1)


# FQL with chunks is QC-FQL; the TD error of the others is SAC Flow's and FQL's, and knows no velocity net
TRIED = {"flow_t-crossq", "flow_t-target", "flow_t-categorical", "fql", "qc", "dime"}


def chain(episodes: int = 1000) -> dict[str, Any]:
    """Walks along the chain under random actions, which change nothing."""
    state = np.tile(np.eye(LENGTH, dtype=np.float32), (episodes, 1))
    last = np.tile(np.arange(LENGTH) == LENGTH - 1, episodes)
    return {
        "observations": state,
        "next_observations": np.where(last[:, None], 0, np.roll(state, 1, axis=1)).astype(np.float32),
        "actions": np.random.default_rng(0).uniform(-1, 1, (len(state), 2)),
        "rewards": last.astype(np.float32),
        "masks": 1.0 - last,
        "terminals": last,
    }


@pytest.mark.slow
@pytest.mark.parametrize("horizon", [1, 5])
@pytest.mark.parametrize(("name", "critic"), [model for model in EVERY_MODEL if model.id in TRIED])
def test_the_value_of_every_state_before_a_termination_is_learned(name: str, critic: str | None, horizon: int) -> None:
    data = chain()

    def rate(remaining: float) -> float:
        return 5e-3 * remaining  # without a target network Q never rests otherwise

    net: dict[str, Any] = {"net_arch": {"qf": [64, 64], "pi": [16]}}
    critics = {"qf_learning_rate": rate, "ent_coef": 0.0, "policy_delay": 10}
    if name in SAC_FLOWS:
        own, net = {"bc_coef": 1.0, **critics}, {"net_arch": {"qf": [64, 64]}, "noise_std": 0.8}
        own |= {"tau": 0.05} if critic == "target" else {}
    elif name in FQLS:
        # More critics average their errors out, which the best of n samples are chosen by
        own, net = {"tau": 0.1, "learning_rate": rate}, {**net, "n_critics": 4}
    else:
        own = critics
    model = make_variant(
        name,
        RandomEnv(spaces.Box(-1.0, 1.0, (LENGTH,), np.float32)),
        critic,
        offline_dataset=data,
        learning_starts=None,
        horizon_length=horizon,
        gamma=GAMMA,
        batch_size=128,
        net=net,
        **own,
    )
    model.learn_offline(250 if name in FQLS else 400)
    actions = th.as_tensor(np.random.default_rng(1).uniform(-1, 1, (LENGTH, 2 * horizon)), dtype=th.float32)
    with th.no_grad():
        q = model.critic(th.eye(LENGTH), actions).mean(dim=0)
    if model.reward_scale is not None:
        q *= model.reward_scale.value
    np.testing.assert_allclose(q, VALUES, atol=0.1)
