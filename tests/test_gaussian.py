"""The Gaussian that the benchmarks compare flows with, on the same critics, is SAC's."""

import numpy as np
import pytest
import torch as th
from contenders import OURS
from gaussian import GaussianPolicy
from helpers import TINY, RandomEnv, randn
from torch.distributions import Independent, Normal, TanhTransform, TransformedDistribution

from sb3_flow import SACFlow

NET = {"net_arch": {"pi": [16, 16], "qf": [16, 16]}}


def test_its_actions_and_densities_are_those_of_a_squashed_gaussian() -> None:
    actor = SACFlow(GaussianPolicy, RandomEnv(), **(TINY | {"policy_kwargs": NET})).actor.double()
    obs, noise = randn(6, 3), randn(2, 6, 2, seed=1)
    context = actor.velocity.encode(actor.norm(obs))
    mean, log_std = context.v, context.log_std
    path = actor.path(obs, noise)
    th.testing.assert_close(path.x, mean + log_std.exp() * noise[1])
    gaussian = Independent(Normal(mean, log_std.exp()), 1)
    log_prob = TransformedDistribution(gaussian, TanhTransform(cache_size=1)).log_prob(th.tanh(path.x))
    th.testing.assert_close(path.log_prob, log_prob, rtol=1e-5, atol=1e-5)
    th.testing.assert_close(actor.action(obs, th.zeros(2, 6, 2).double()), th.tanh(mean))


@pytest.mark.parametrize("name", [name for name in OURS if name.startswith("gaussian")])
def test_it_learns_on_every_critic_and_is_saved_alone(name: str, tmp_path) -> None:
    critic = OURS[name].arguments.get("policy_kwargs", {})
    model = SACFlow(OURS[name].policy, RandomEnv(), **(TINY | {"policy_kwargs": NET | critic})).learn(14)
    assert model._n_updates == 4
    model.policy.save(tmp_path / "policy")
    obs = np.zeros((2, 3), np.float32)
    loaded = GaussianPolicy.load(tmp_path / "policy", device="cpu")
    np.testing.assert_array_equal(*(policy.predict(obs, deterministic=True)[0] for policy in (model.policy, loaded)))
