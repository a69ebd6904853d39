"""Behaviour cloning with a flow policy: what is left of the offline phase without a critic."""

from stable_baselines3.common.torch_layers import BaseFeaturesExtractor

from sb3_flow import FlowTPolicy
from sb3_flow.common.critics import FlowCritic


class CloningPolicy(FlowTPolicy):
    """Flow-T whose Q is 0 everywhere: flow matching and the proximity term remain.

    A Q that is constant on the data alone would not do: the actor goes where it is higher.
    """

    def _make_critic(self, extractor: BaseFeaturesExtractor) -> FlowCritic:
        critic = super()._make_critic(extractor)
        critic.q_networks.register_forward_hook(lambda module, inputs, outputs: 0 * outputs)
        return critic
