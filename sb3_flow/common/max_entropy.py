"""What the maximum-entropy algorithms share: a temperature, its arguments, and how both are saved."""

import math
import warnings
from io import BufferedIOBase
from pathlib import Path
from typing import Any, ClassVar, TypeVar

import torch as th
from stable_baselines3.common.type_aliases import Schedule
from stable_baselines3.common.utils import FloatSchedule, update_learning_rate

from sb3_flow.common.checks import require, require_integer, require_number
from sb3_flow.common.log import Log
from sb3_flow.common.off_policy import OffPolicyFlowAlgorithm
from sb3_flow.common.temperature import Temperature, initial_ent_coef

SelfMaxEntropy = TypeVar("SelfMaxEntropy", bound="MaxEntropyAlgorithm")


class MaxEntropyAlgorithm(OffPolicyFlowAlgorithm):
    """An algorithm with an entropy term, whose actor and temperature may be updated less often than the critics.

    A subclass may have other defaults, which it puts in place of None and "auto" (`_complete_defaults`), and another
    temperature (`_make_temperature`).

    :param ent_coef: alpha; "auto" or "auto_0.2" to learn it from that start, or a float >= 0; None if the subclass
        knows a default
    :param target_entropy: of a learned alpha, in nats; "auto" for SAC's, -D, or the subclass's
    :param qf_learning_rate: of the critics and of alpha, unless the class has an `ent_coef_learning_rate`; None if the
        subclass knows a default
    :param policy_delay: critic updates per actor update; None if the subclass knows a default
    :raises ValueError: before training, for arguments outside of what is stated here

    The other parameters are those of `OffPolicyFlowAlgorithm`.
    """

    ent_coef_learning_rate: ClassVar[float | None] = None  # None for that of the critics
    qf_lr_schedule: Schedule
    temperature: Temperature

    def __init__(
        self,
        *args: Any,
        ent_coef: str | float | None = "auto",
        target_entropy: str | float = "auto",
        qf_learning_rate: float | Schedule | None = 3e-4,
        policy_delay: int | None = 1,
        **kwargs: Any,
    ):
        self.ent_coef = ent_coef
        self.target_entropy = target_entropy
        self.qf_learning_rate = qf_learning_rate
        self.policy_delay = policy_delay
        self._temperature_of: str | float | None = None  # the `ent_coef` that the temperature was made of
        super().__init__(*args, **kwargs)

    def _check_arguments(self) -> None:
        super()._check_arguments()
        if self.policy_delay is not None:
            require_integer("policy_delay", self.policy_delay)
        self._check_learning_rate("qf_learning_rate", allow_none=True)
        if isinstance(self.ent_coef, str):
            initial_ent_coef(self.ent_coef)
        elif self.ent_coef is not None:
            require_number("ent_coef", self.ent_coef, 0, math.inf, "a number >= 0, 'auto' or 'auto_<initial value>'")
        if isinstance(self.target_entropy, str):
            require(self.target_entropy == "auto", "target_entropy", self.target_entropy, "'auto' or a number")
        else:
            require_number("target_entropy", self.target_entropy, -math.inf, math.inf, "'auto' or a finite number")

    def _setup_model(self) -> None:
        super()._setup_model()
        self._set_defaults()
        self._setup_qf_lr_schedule()
        self._setup_temperature()

    def _set_defaults(self) -> None:
        """Let a subclass complete them, and leave nothing open."""
        self._complete_defaults()
        for name in ("ent_coef", "qf_learning_rate", "policy_delay"):
            require(getattr(self, name) is not None, name, None, "leave it out for the default")
        self.target_entropy = float(self.target_entropy)

    def _complete_defaults(self) -> None:
        """Put values in place of None, and a number in place of the target's "auto"; the nets are there."""
        if self.target_entropy == "auto":
            self.target_entropy = -float(self.policy.chunk_dim)

    def _make_temperature(self, ent_coef: str | float) -> Temperature:
        """The temperature that an `ent_coef` asks for."""
        return Temperature(ent_coef, self.ent_coef_learning_rate or self.qf_lr_schedule(1), 0.9, self.device)

    def _setup_temperature(self) -> None:
        assert self.ent_coef is not None
        # A file has the state of the temperature that there was, whatever was assigned since
        if self._temperature_of is None:
            self._temperature_of = self.ent_coef
        self.temperature = self._make_temperature(self._temperature_of)

    def _setup_qf_lr_schedule(self) -> None:
        assert self.qf_learning_rate is not None
        self.qf_lr_schedule, self._qf_scheduled = FloatSchedule(self.qf_learning_rate), self.qf_learning_rate

    def _follow_arguments(self) -> None:
        super()._follow_arguments()
        self._set_defaults()
        if self.qf_learning_rate != self._qf_scheduled:  # as `lr_schedule`, it may be assigned itself
            self._setup_qf_lr_schedule()
        self._follow_ent_coef()

    def _follow_ent_coef(self) -> None:
        """Set the temperature anew, unless it is learned before and after."""
        log_ent_coef = self.temperature.log_ent_coef
        if not (isinstance(self.ent_coef, str) and log_ent_coef is not None):
            self._temperature_of = self.ent_coef
            self._setup_temperature()
        elif self.ent_coef != self._temperature_of:
            warnings.warn(
                f"ent_coef={self.ent_coef!r} says where a new model begins; alpha goes on from "
                f"{float(self.temperature.value):.3g}. To set it: model.log_ent_coef.data.fill_(math.log(alpha))",
                stacklevel=4,
            )
            self.ent_coef = self._temperature_of

    @property
    def _schedules(self) -> dict[str, Schedule]:
        return {**super()._schedules, "qf_learning_rate": self.qf_lr_schedule}

    def _update_temperature(self, log_prob: th.Tensor, log: Log) -> None:
        """One step of alpha towards the target entropy, if it is learned."""
        assert isinstance(self.target_entropy, float)
        log_ent_coef, optimizer = self.temperature.log_ent_coef, self.temperature.optimizer
        if log_ent_coef is None or optimizer is None:
            return
        advice = "nothing would call its hooks, for its gradient is a formula; remove them"
        require(not log_ent_coef._backward_hooks, "log_ent_coef", log_ent_coef, advice)
        step = self._recorded_step(self.temperature.step, optimizer)
        # A tensor: every other number would be a graph of its own
        target_entropy = th.full((), self.target_entropy, device=self.device)
        loss, bad = step(log_prob, target_entropy, self._guard)
        self._guard.remember("temperature", {"temperature_loss": 1}, bad)
        log.add(("ent_coef_loss",), loss.view(1))

    @property
    def _updates_actor(self) -> bool:
        """Whether this update is one of the actor, too."""
        assert self.policy_delay is not None
        return self._n_updates % self.policy_delay == 0

    def _update_learning_rates(self) -> None:
        nets = [net for net in self._nets.values() if net is not self.critic]
        self._update_learning_rate([net.optimizer for net in nets])
        qf_learning_rate = self._value_now("qf_learning_rate", self.qf_lr_schedule)
        self.logger.record("train/qf_learning_rate", qf_learning_rate)
        update_learning_rate(self.critic.optimizer, qf_learning_rate)
        if self.ent_coef_optimizer is not None:
            update_learning_rate(self.ent_coef_optimizer, self.ent_coef_learning_rate or qf_learning_rate)

    # SAC's names, under which SB3 saves them, too

    @property
    def log_ent_coef(self) -> th.Tensor | None:
        """Log alpha, (1,); None if alpha is fixed."""
        return self.temperature.log_ent_coef

    @property
    def ent_coef_optimizer(self) -> th.optim.Optimizer | None:
        """Optimizer of a learned alpha."""
        return self.temperature.optimizer

    @property
    def ent_coef_tensor(self) -> th.Tensor | None:
        """A fixed alpha, ()."""
        return self.temperature.ent_coef_tensor

    @classmethod
    def load(cls: type[SelfMaxEntropy], path: str | Path | BufferedIOBase, *args: Any, **kwargs: Any) -> SelfMaxEntropy:
        """Load a model as SB3's `load` does, and change `ent_coef` where that cannot: from learned to fixed and back.

        :param path: of the zip-file, or the open file
        :param args: env, device, custom_objects, ... of SB3's `load`
        :param kwargs: these by name, and arguments of the algorithm to change; where alpha is learned before and after,
            it is kept
        """
        ent_coef = kwargs.pop("ent_coef", None)
        model = super().load(path, *args, **kwargs)
        if ent_coef is not None:
            model.ent_coef = ent_coef
            model._check_arguments()
            model._follow_ent_coef()
        return model

    def _excluded_save_params(self) -> list[str]:
        return [*super()._excluded_save_params(), "temperature", "_qf_scheduled"]

    def _get_torch_save_params(self) -> tuple[list[str], list[str]]:
        state_dicts, tensors = super()._get_torch_save_params()
        if self.ent_coef_optimizer is None:
            return state_dicts, [*tensors, "ent_coef_tensor"]
        return [*state_dicts, "ent_coef_optimizer"], [*tensors, "log_ent_coef"]
