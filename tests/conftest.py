"""Settings for all tests."""

import os
import sys

# Before anything imports MuJoCo: without a display its default aborts the process
if sys.platform == "linux":
    os.environ.setdefault("MUJOCO_GL", "egl")

import pytest
import torch as th


@pytest.fixture(autouse=True, scope="session")
def _one_thread() -> None:
    # The nets are so small that threads cost more than they bring, and bit-identity must not hang on their number
    th.set_num_threads(1)
