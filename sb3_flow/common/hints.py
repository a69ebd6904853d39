"""What a user would else find out late: arguments of SB3's that are not ours, and calls that do nothing."""

import difflib
import inspect
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, TypeGuard

from stable_baselines3.common.running_mean_std import RunningMeanStd
from stable_baselines3.common.type_aliases import Schedule
from stable_baselines3.common.vec_env import VecNormalize

from sb3_flow.datasets.observations import parts

# Arguments of SB3's SAC, and what there is instead
INSTEAD: Mapping[str, str] = {
    "use_sde": "leave it out: the policy's own noise explores",
    "sde_sample_freq": "leave it out: the policy's own noise explores",
    "use_sde_at_warmup": "leave it out: the policy's own noise explores",
    "target_update_interval": "leave it out: target critics, where there are any, follow by tau",
    "log_std_init": "the noise is set by other arguments of the policy",
    "use_expln": "the noise is set by other arguments of the policy",
    "clip_mean": "leave it out: actions are squashed",
    "vf_coef": "the value net has an optimizer of its own: set vf_learning_rate",
    "clip_range_vf": "leave it out: the value net's loss is not clipped",
    "max_grad_norm": "leave it out: gradients are not clipped",
    "normalize_advantage": "leave it out: advantages are always normalised",
    "rollout_buffer_class": "leave it out: a rollout holds the paths of the actions",
    "rollout_buffer_kwargs": "leave it out: a rollout holds the paths of the actions",
    "activation_fn": "set net_arch; the activations belong to the nets",
}
# Parameters of SB3's base classes, beside those, that ours set themselves
SET_HERE = {"sde_support", "monitor_wrapper", "support_multi_env", "supported_action_spaces"}


def check_known(cls: type[Any], kwargs: Iterable[str]) -> None:
    """Refuse arguments that a class does not take.

    :param cls: the class
    :param kwargs: names of the arguments
    :raises ValueError: naming those that it takes
    """
    known = arguments_of(cls)
    for name in kwargs:
        if known and name not in known:
            raise ValueError(f"{name} is no argument of {cls.__name__}: {_instead(name, known, cls)}")


def _instead(name: str, known: list[str], cls: type[Any]) -> str:
    """What to do in place of giving an argument that is not known."""
    policies = getattr(cls, "policy_aliases", {}).values()
    close = difflib.get_close_matches(name, known, n=1)
    if name == "target_update_interval" and "tau" not in known:
        advice = "leave it out: there are no target critics"
    elif name in INSTEAD:
        advice = INSTEAD[name]
    elif any(name in arguments_of(policy) for policy in policies):
        return f"it is an argument of the policy: policy_kwargs={{{name!r}: ...}}"
    elif close:
        return f"did you mean {close[0]}?"
    else:
        own = "" if cls.__module__.startswith("sb3_flow.") else f", or add it to {cls.__name__}.__init__"
        advice = f"leave it out{own}"
    return f"{advice}. It takes {', '.join(one for one in known if not one.startswith('_'))}"


def arguments_of(cls: type[Any]) -> list[str]:
    """Names of the constructor's parameters, up to the first base that hands nothing on; none if all do."""
    names: dict[str, None] = {}
    for base in cls.__mro__:
        if "__init__" not in vars(base):
            continue
        parameters = inspect.signature(vars(base)["__init__"]).parameters.values()
        not_ours = INSTEAD.keys() | SET_HERE if base.__module__.startswith("stable_baselines3.") else set()
        by_name = (p.name for p in parameters if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY))
        names |= dict.fromkeys(name for name in by_name if name not in not_ours)
        if not any(p.kind is p.VAR_KEYWORD for p in parameters):
            return [name for name in names if name != "self"]
    return []


def learning_hints(
    total_timesteps: int,
    learning_starts: int,
    offline_left: int,
    stores: int,
    online_only: Iterable[str],
    goes_on: bool,
    goes_on_offline: bool,
) -> Iterator[str]:
    """What a run of so many timesteps will not do, or do again.

    :param total_timesteps: of the run
    :param learning_starts: random steps before learning
    :param offline_left: updates of the offline phase that come first
    :param stores: steps of the environment that are only stored, after that phase
    :param online_only: arguments that were given for the phase in the environment alone
    :param goes_on: whether the model had learned in an environment when it was loaded
    :param goes_on_offline: whether it had been saved, or interrupted, within the offline phase
    """
    if offline_left == 0 and total_timesteps <= learning_starts:
        yield (
            f"learn({total_timesteps}) ends before learning begins: {learning_starts} steps are random. Lower "
            "learning_starts, or learn longer."
        )
    elif goes_on and learning_starts > 0:
        yield (
            f"learn({total_timesteps}) counts anew: its first {learning_starts} steps are random, though this model "
            "has learned. To go on, pass reset_num_timesteps=False, or set learning_starts to 0."
        )
    if 0 < offline_left < min(learning_starts, total_timesteps):
        yield (
            f"After {offline_left} updates from data the steps up to {learning_starts} are random, and no update is "
            "made: learning_starts counts from the start of the offline phase. Set it to 0."
        )
    if stores > 0 and offline_left < total_timesteps < offline_left + stores:
        yield (
            f"learn({total_timesteps}) only stores its steps of the environment: start_training waits for {stores} of "
            "them. Lower it, or learn longer."
        )
    if goes_on_offline and offline_left != total_timesteps:  # `learn_offline` asks for just these
        yield (
            f"This model is still in its offline phase, which learn({total_timesteps}) goes on with: "
            f"{min(offline_left, total_timesteps)} updates from data come first. To go on in the environment, pass "
            "offline_steps=0 to `load`."
        )
    unused = ", ".join(online_only)
    if total_timesteps < offline_left and unused:
        yield (
            f"learn({total_timesteps}) never steps the environment, for {offline_left} updates of the offline phase "
            f"come first: {unused} will do nothing"
        )


def jumps(schedules: Mapping[str, Schedule], done: int, end_before: int, end: int) -> Iterator[str]:
    """What jumps because a run gets longer than its schedules were told.

    :param schedules: of the progress remaining, by their names
    :param done: timesteps
    :param end_before: of the run, in timesteps, as the last call of `learn` had it; 0 if there was none
    :param end: of the run now
    """
    if not 0 < end_before < end:
        return
    for name, schedule in schedules.items():
        before, now = (schedule(max(0.0, 1 - done / last)) for last in (end_before, end))
        if before != now:
            yield (
                f"{name} jumps from {before:.3g} to {now:.3g}: its schedule went up to {end_before} timesteps, and "
                f"now goes up to {end}. Tell `learn` all of them at once, with a callback for what is done between, "
                "or use a constant."
            )


def normalization_hints(normalize: VecNormalize | None, was_normalized: bool) -> Iterator[str]:
    """What a model that has learned sees otherwise than it did then.

    :param normalize: of its environment now
    :param was_normalized: whether the observations that it learned from were normalised
    """
    if knows_nothing(normalize):
        yield (
            "The VecNormalize has seen nothing yet, but this model has learned: load the statistics that it "
            "learned with (VecNormalize.load), or go on from a checkpoint with `resume`."
        )
    if was_normalized and not normalizes(normalize):
        yield (
            "This model learned from observations that a VecNormalize had normalised, and its environment shows raw "
            "ones: wrap it by VecNormalize.load, or go on from a checkpoint with `resume`."
        )


def normalizes(normalize: VecNormalize | None) -> TypeGuard[VecNormalize]:
    """Whether observations are normalised."""
    return normalize is not None and normalize.norm_obs


def knows_nothing(normalize: VecNormalize | None) -> bool:
    """Whether a VecNormalize has seen no observation."""
    if not normalizes(normalize):
        return False
    statistics: dict[str, RunningMeanStd] = parts(normalize.obs_rms)
    return next(iter(statistics.values())).count < 1
