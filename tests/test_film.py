"""A strip of pictures from an environment whose pictures show the step they belong to."""

import film
import gymnasium as gym
import numpy as np
from gymnasium import spaces
from on_policy import as_trained
from stable_baselines3.common.vec_env import DummyVecEnv, VecNormalize

from sb3_flow import SACFlow

LENGTH = 7


class Clock(gym.Env):
    """Ends after so many steps; a picture is as bright as the step's number, the actions are kept."""

    metadata = {"render_modes": ["rgb_array"], "render_fps": 20}  # noqa: RUF012
    render_mode = "rgb_array"
    observation_space = spaces.Box(-1, 1, (2,), np.float32)
    action_space = spaces.Box(-1, 1, (1,), np.float32)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.actions = []
        self.start = self.np_random.uniform(-1, 1, 2).astype(np.float32)
        return self.start, {}

    def step(self, action):
        self.actions.append(float(action[0]))
        return self.start, 0.0, len(self.actions) == LENGTH, False, {}

    def render(self):
        return np.full((8, 10, 3), len(self.actions), np.uint8)


def test_an_episode_is_filmed_from_its_first_state_to_its_last():
    env = Clock()
    model = SACFlow("FlowMLPPolicy", env, horizon_length=3, policy_kwargs={"net_arch": [4], "flow_steps": 2})
    pictures = film.film(model, env, seed=3)
    assert [picture[0, 0, 0] for picture in pictures] == list(range(LENGTH + 1))
    # The observation stands still: each chunk of three actions is the same, and is executed whole
    assert len(set(env.actions[:3])) == 3
    assert env.actions == (env.actions[:3] * 3)[:LENGTH]


def test_a_model_that_learned_from_normalised_observations_sees_such(tmp_path):
    env = Clock()
    known = VecNormalize(DummyVecEnv([Clock]))
    known.obs_rms.mean[:] = 5.0
    known.save(str(tmp_path / "vecnormalize.pkl"))
    normalize = as_trained(tmp_path / "model.zip", DummyVecEnv([Clock]))
    model = SACFlow("FlowMLPPolicy", known, policy_kwargs={"net_arch": [4], "flow_steps": 2})
    film.film(model, env, 3, normalize)
    action, _ = model.predict(known.normalize_obs(env.start), deterministic=True)
    np.testing.assert_allclose(env.actions, [action.item()] * LENGTH, rtol=1e-5)
    assert as_trained(tmp_path / "nowhere" / "model.zip", known) is known


def test_a_strip_begins_and_ends_with_the_episode(tmp_path, monkeypatch):
    figures = []
    monkeypatch.setattr(film.Figure, "savefig", lambda figure, path, dpi: figures.append(figure))
    film.draw_strip([np.full((8, 10, 3), step, np.uint8) for step in range(11)], 3, tmp_path / "new" / "strip.png")
    (figure,) = figures
    assert [axes.get_title() for axes in figure.axes] == ["step 0", "step 5", "step 10"]
    assert [axes.images[0].get_array()[0, 0, 0] for axes in figure.axes] == [0, 5, 10]
