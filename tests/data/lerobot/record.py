"""Wrote the datasets beside it, v3.0 with LeRobot 0.4.4 and v2.1 with 0.3.3: python record.py <folder>"""

import sys
from typing import Any

import numpy as np
from lerobot.datasets.lerobot_dataset import LeRobotDataset

HEIGHT, WIDTH, LENGTHS = 32, 48, (5, 7, 6)


def camera(dtype: str) -> dict[str, Any]:
    return {"dtype": dtype, "shape": (HEIGHT, WIDTH, 3), "names": ["height", "width", "channels"]}


def numbers(size: int, dtype: str = "float32") -> dict[str, Any]:
    return {"dtype": dtype, "shape": (size,), "names": None}


features = {
    "observation.state": numbers(3),
    "observation.images.top": camera("video"),
    "observation.images.wrist": camera("image"),
    "action": numbers(2),
    "next.reward": numbers(1),
    "next.done": numbers(1, "bool"),
    "next.success": numbers(1, "bool"),
}
dataset = LeRobotDataset.create("test/drawn", fps=10, root=sys.argv[1], robot_type="none", features=features)
for episode, length in enumerate(LENGTHS):
    for step in range(length):
        picture = np.empty((HEIGHT, WIDTH, 3), np.uint8)
        picture[..., 0] = 60 * episode + 40
        picture[..., 1] = 30 * step + 20
        picture[..., 2] = np.arange(WIDTH)
        frame = {
            "observation.state": np.array([episode, step, 10 * episode + step], np.float32),
            "observation.images.top": picture,
            "observation.images.wrist": 255 - picture,
            "action": np.array([episode / 2, step / 8], np.float32),
            "next.reward": np.array([step / 2], np.float32),
            "next.done": np.array([step == length - 1]),
            "next.success": np.array([step == length - 1 and episode != 1]),
        }
        try:
            dataset.add_frame({**frame, "task": "draw"})
        except TypeError:  # before 0.4
            dataset.add_frame(frame, "draw")
    dataset.save_episode()
if hasattr(dataset, "finalize"):
    dataset.finalize()
