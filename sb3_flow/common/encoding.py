"""One features extractor for all nets: trained by the critics' loss, read by the others, and run once an update."""

from collections.abc import Callable
from typing import Any

import torch as th
from gymnasium import spaces
from stable_baselines3.common.policies import BaseModel
from stable_baselines3.common.torch_layers import BaseFeaturesExtractor
from stable_baselines3.common.type_aliases import PyTorchObs

from sb3_flow.common.buffers import Batch


class SharedFeatures(BaseFeaturesExtractor):
    """In a net that reads the critics' features: their extractor, without a gradient.

    :param extractor: the critics'
    """

    def __init__(self, extractor: BaseFeaturesExtractor):
        super().__init__(extractor._observation_space, extractor.features_dim)
        self._extractor = (extractor,)  # in a tuple, or its parameters would be those of this net, too

    @property
    def extractor(self) -> BaseFeaturesExtractor:
        """The critics'."""
        return self._extractor[0]

    def forward(self, observations: PyTorchObs) -> th.Tensor:
        with th.no_grad():
            features: th.Tensor = self.extractor(observations)
            return features


class Encoded:
    """Observations in place of which the features are taken that the critics' extractor has made of them.

    :param obs: the observations
    :param extractor: the critics'
    :param extract: makes the features, when they are first asked for
    :param gradient: whether they have one, whoever asks first
    """

    def __init__(
        self, obs: PyTorchObs, extractor: BaseFeaturesExtractor, extract: Callable[[], th.Tensor], gradient: bool
    ):
        self.obs = obs
        self.extractor = extractor
        self._extract = extract
        self._gradient = gradient
        self._features: th.Tensor | None = None

    @property
    def features(self) -> th.Tensor:
        """(B, features_dim)."""
        if self._features is None:
            with th.set_grad_enabled(self._gradient):
                self._features = self._extract()
            if not self._gradient and not th.compiler.is_compiling():
                # In PyTorch 2.8 autocast keeps these weights without their gradient, and s would have none either
                th.clear_autocast_cache()
        return self._features

    def __getattr__(self, name: str) -> Any:
        raise AttributeError(
            f"These observations are encoded already (share_features_extractor=True) and have no {name}: hand them to "
            "a net as they are, or go on with net.extract_features(observations, net.features_extractor)"
        )


class ObservingModel(BaseModel):
    """A net that takes observations, or what has been encoded already.

    :param observation_space: observation space
    :param action_space: action space
    :param features_extractor: maps observations to (B, features_dim)
    :param features_dim: width of the features
    :param normalize_images: divide images by 255
    :param kwargs: of SB3's BaseModel
    """

    features_extractor: BaseFeaturesExtractor
    optimizer: th.optim.Optimizer

    def __init__(
        self,
        observation_space: spaces.Space[Any],
        action_space: spaces.Box,
        features_extractor: BaseFeaturesExtractor,
        features_dim: int,
        normalize_images: bool = True,
        **kwargs: Any,
    ):
        super().__init__(
            observation_space,
            action_space,
            features_extractor=features_extractor,
            normalize_images=normalize_images,
            **kwargs,
        )
        self.features_dim = features_dim

    def extract_features(self, obs: PyTorchObs | Encoded, features_extractor: BaseFeaturesExtractor) -> th.Tensor:
        """Features of B observations, (B, features_dim).

        :param obs: the observations
        :param features_extractor: of this net; another one than the critics' encodes for itself
        """
        if isinstance(obs, Encoded):
            if isinstance(features_extractor, SharedFeatures):
                return obs.features.detach()
            if features_extractor is obs.extractor:
                return obs.features
            obs = obs.obs
        return super().extract_features(obs, features_extractor)

    def set_training_mode(self, mode: bool) -> None:
        """Training or evaluation mode; where it is set already, nothing is done.

        Every decision and every update asks, and the walk through all modules was a quarter of a decision. Parts that
        come from another model may be in another mode than the whole.
        """
        if any(module.training != mode for module in (self, *self.children())):
            super().set_training_mode(mode)


def encode_once(batch: Batch, critic: BaseModel) -> Batch:
    """A batch whose observations are encoded once for all nets of a loss.

    Those of s have the gradient of the critics' loss; those of s' have none, as in DrQ-v2 (arXiv 2107.09645), and in
    the other nets' losses none has.

    :param batch: as it was sampled
    :param critic: owns the extractor; in training mode in its own loss alone
    """
    extractor = critic.features_extractor
    assert extractor is not None

    def encode(obs: PyTorchObs, gradient: bool) -> Any:  # it stands for observations wherever they are encoded
        return Encoded(obs, extractor, lambda: critic.extract_features(obs, extractor), gradient)

    now = encode(batch.observations, critic.training and th.is_grad_enabled())
    then = encode(batch.next_observations, False)
    return batch._replace(observations=now, next_observations=then)


def n_observations(obs: PyTorchObs) -> int:
    """B of a batch of observations."""
    return next(iter(obs.values())).shape[0] if isinstance(obs, dict) else obs.shape[0]
