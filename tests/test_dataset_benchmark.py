"""The benchmarks of offline data, as far as they take no time."""

from copy import deepcopy

import datasets  # benchmarks/datasets.py
import learning
import numpy as np
import torch as th
from dataset_files import regular_arrays, trajectories
from helpers import RandomEnv, policy_kwargs


def test_both_contenders_make_offline_updates_of_nets_of_the_same_size():
    models = [make(2 * datasets.EPISODE) for make in (datasets.with_chunks, datasets.without_chunks)]
    sizes = []
    for model in models:
        model.train(1, batch_size=8)
        sizes.append([tuple(parameter.shape) for parameter in model.policy.parameters()])
        assert "train/matching_loss" in model.logger.name_to_value
    assert sizes[0] == sizes[1]


def test_cloning_learns_from_the_data_without_a_critic(tmp_path):
    np.savez(tmp_path / "data.npz", **regular_arrays(trajectories([30])))
    overrides = {
        "env": RandomEnv(),
        "offline_dataset": tmp_path / "data.npz",
        "offline_steps": 10**9,
        "policy_kwargs": policy_kwargs("FlowTPolicy", "target"),
    }
    model = learning.make_model(learning.Run("none", "cloning", 1, 60, 60, 1, 0, 16, 8, tmp_path, overrides))
    before = deepcopy(model.policy)
    model.learn(3)
    th.testing.assert_close(model.critic.state_dict(), before.critic.state_dict(), rtol=0, atol=0)
    assert any((a != b).any() for a, b in zip(model.actor.parameters(), before.actor.parameters(), strict=True))
    assert (model.critic(th.ones(4, 3), th.ones(4, 2)) == 0).all()
