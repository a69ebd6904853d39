"""What VecNormalize knows of offline data."""

import numpy as np
from numpy.typing import NDArray
from stable_baselines3.common.running_mean_std import RunningMeanStd
from stable_baselines3.common.vec_env import VecNormalize

from sb3_flow.datasets import Dataset, OfflineDataset
from sb3_flow.datasets.arrays import blocks
from sb3_flow.datasets.observations import parts

TAUGHT = "has_seen_offline_data"  # attribute of a VecNormalize, which is saved and loaded with it


def learn_statistics(env: VecNormalize, dataset: Dataset) -> None:
    """Let the running statistics see the data as if the environment had been stepped through them, but only once.

    Without it, an offline phase would be normalised by the one observation of the first reset, and clipped.

    :param env: unchanged if its `training` is False
    :param dataset: what is learned from; of several files the first
    """
    if vars(env).get(TAUGHT, False) or not env.training:
        return
    setattr(env, TAUGHT, True)
    data = dataset.at(0)  # not before: it may have to be read again
    if env.norm_obs:
        statistics: dict[str, RunningMeanStd] = parts(env.obs_rms)
        for key, array in parts(data.observations).items():
            if key in statistics:  # a VecNormalize leaves out what its norm_obs_keys do
                for _, block in blocks(array):
                    statistics[key].update(block)
    if env.norm_reward:
        env.ret_rms.update(running_returns(data, env.gamma))


def running_returns(data: OfflineDataset, gamma: float) -> NDArray[np.float64]:
    """R_t = gamma R_(t-1) + r_t of every step, from 0 in every episode: what VecNormalize scales rewards by.

    :param data: N steps
    :param gamma: discount factor
    :return: (N,)
    """
    rows = data.rows(np.arange(len(data)))
    returns, running = np.empty(len(data)), 0.0
    for step, (reward, end) in enumerate(zip(data.rewards[rows].tolist(), data.ends[rows].tolist(), strict=True)):
        running = gamma * running + reward
        returns[step] = running
        running *= not end
    return returns
