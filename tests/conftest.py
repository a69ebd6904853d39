"""Settings for all tests."""

import gc
import os
import sys

# Before anything imports MuJoCo: without a display its default aborts the process
if sys.platform == "linux":
    os.environ.setdefault("MUJOCO_GL", "egl")

import gymnasium as gym
import pytest
import torch as th

# Files that take a minute or more; begun last, they would keep one worker while the others have nothing left
LONG = ("test_zoo", "test_reproduce", "test_compile", "test_run", "test_chain", "test_learning", "test_examples")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    items.sort(key=lambda item: LONG.index(item.path.stem) if item.path.stem in LONG else len(LONG))


def pytest_collection_finish() -> None:
    gc.freeze()  # what was imported: Optuna collects garbage after each trial, and would look through it all
    gc.set_threshold(100_000, 10, 10)  # a tenth of the suite's time was spent looking for cycles


@pytest.fixture(autouse=True, scope="session")
def _one_thread() -> None:
    # The nets are so small that threads cost more than they bring, and bit-identity must not hang on their number
    th.set_num_threads(1)


@pytest.fixture
def short_episodes(monkeypatch: pytest.MonkeyPatch) -> None:
    """No registered environment has an episode of more than 20 steps."""
    for spec in gym.registry.values():
        monkeypatch.setattr(spec, "max_episode_steps", min(spec.max_episode_steps or 20, 20))
