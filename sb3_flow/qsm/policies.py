"""QSM's policy: a diffusion model of the action, and twin critics.

Shapes: B batch, D numbers in an action chunk, T diffusion steps.
"""

from typing import Any

import torch as th
from gymnasium import spaces
from stable_baselines3.common.torch_layers import BaseFeaturesExtractor
from stable_baselines3.common.type_aliases import PyTorchObs, Schedule

from sb3_flow.common.checks import require_integer
from sb3_flow.common.critics import CriticKind
from sb3_flow.common.diffusion import EpsilonFn, NoiseSchedule, denoise, vp_schedule
from sb3_flow.common.policies import ChunkActor, ChunkPolicy, ImagePolicy
from sb3_flow.qsm.networks import EpsilonNet, critic_mlp

CRITIC = CriticKind(critic_mlp, [512, 512], has_target=True, verdict="min")


class DiffusionActor(ChunkActor):
    """Denoises an action in T steps, clipped to [-1, 1] after each.

    :param observation_space: observation space
    :param action_space: action space
    :param features_extractor: maps observations to (B, features_dim)
    :param features_dim: width of the features
    :param chunk_dim: D, numbers in an action chunk
    :param net_arch: hidden widths
    :param diffusion_steps: T
    :param normalize_images: divide images by 255
    """

    alphas: th.Tensor
    alpha_bars: th.Tensor

    def __init__(
        self,
        observation_space: spaces.Space[Any],
        action_space: spaces.Box,
        features_extractor: BaseFeaturesExtractor,
        features_dim: int,
        chunk_dim: int,
        net_arch: list[int],
        diffusion_steps: int,
        normalize_images: bool = True,
    ):
        super().__init__(observation_space, action_space, features_extractor, features_dim, chunk_dim, normalize_images)
        self.net_arch = net_arch
        self.diffusion_steps = diffusion_steps
        self.epsilon = EpsilonNet(features_dim, chunk_dim, net_arch)
        for name, values in vp_schedule(diffusion_steps)._asdict().items():
            self.register_buffer(name, values, persistent=False)

    def _get_constructor_parameters(self) -> dict[str, Any]:
        data = super()._get_constructor_parameters()
        data.update(net_arch=self.net_arch, diffusion_steps=self.diffusion_steps)
        return data

    @property
    def schedule(self) -> NoiseSchedule:
        """How much noise each step has."""
        return NoiseSchedule(self.alphas, self.alpha_bars)

    def field(self, obs: PyTorchObs) -> EpsilonFn:
        """The predicted noise in B states, which are encoded once: `(x, step) -> epsilon`."""
        context = self.epsilon.encode(self.extract_features(obs, self.features_extractor))
        return lambda x, step: self.epsilon(context, x, step)

    def action(self, obs: PyTorchObs, noise: th.Tensor) -> th.Tensor:
        return denoise(self.field(obs), noise, self.schedule, bound=1.0)

    def noise_shape(self, batch_size: int) -> tuple[int, ...]:
        return self.diffusion_steps, batch_size, self.chunk_dim

    def sample_steps(self, batch_size: int) -> th.Tensor:
        """A step for each of B actions, uniform in 0 ... T - 1, (B, 1)."""
        return th.randint(self.diffusion_steps, (batch_size, 1), device=self.device)


class QSMPolicy(ChunkPolicy):
    """Actor and critics of QSM.

    :param net_arch: hidden widths, a list for all nets or `dict(pi=..., qf=...)`; None for the authors' 512, 512
    :param diffusion_steps: T >= 1
    :param critic_pessimism: rho >= 0, their verdict in the target is mean - rho std; None for the lowest
    :raises ValueError: for values outside of what is stated here

    The other parameters are those of `ChunkPolicy`.
    """

    critic_kind = CRITIC
    actor: DiffusionActor

    def __init__(
        self,
        observation_space: spaces.Space[Any],
        action_space: spaces.Box,
        lr_schedule: Schedule,
        *,
        diffusion_steps: int = 5,
        **kwargs: Any,
    ):
        require_integer("diffusion_steps", diffusion_steps)
        self.diffusion_steps = diffusion_steps  # before super().__init__(), which builds the nets
        super().__init__(observation_space, action_space, lr_schedule, **kwargs)

    def _make_actor(self) -> DiffusionActor:
        return DiffusionActor(
            **self.net_arguments(),
            chunk_dim=self.chunk_dim,
            net_arch=self.arch("pi", [512, 512]),
            diffusion_steps=self.diffusion_steps,
        ).to(self.device)

    def _get_constructor_parameters(self) -> dict[str, Any]:
        data = super()._get_constructor_parameters()
        data.update(diffusion_steps=self.diffusion_steps)
        return data


class QSMCnnPolicy(ImagePolicy, QSMPolicy):
    """QSM on images, also on those that are not uint8. The parameters are those of `QSMPolicy`."""
