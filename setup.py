import re
from pathlib import Path

from setuptools import find_packages, setup

HERE = Path(__file__).parent
VERSION = re.search(r'__version__ = "(.+)"', (HERE / "sb3_flow" / "__init__.py").read_text())
assert VERSION is not None

setup(
    name="sb3_flow",
    version=VERSION.group(1),
    description="Flow and diffusion policies for Stable-Baselines3, off-policy: SAC Flow and what it is compared with",
    long_description=(HERE / "README.md").read_text(),
    long_description_content_type="text/markdown",
    license="MIT",
    python_requires=">=3.11",
    packages=[*find_packages(include=["sb3_flow", "sb3_flow.*"]), "sb3_flow.hyperparams"],
    package_dir={"sb3_flow.hyperparams": "hyperparams"},
    # rl_zoo3 imports a module of this name at start-up; it is how our algorithms become known (docs/rl_zoo3.md)
    py_modules=["custom_envs"],
    package_data={"sb3_flow": ["py.typed"], "sb3_flow.hyperparams": ["*.yml"]},
    install_requires=[
        "stable-baselines3>=2.9,<3",
        "sb3-contrib>=2.9,<3",
        "rl-zoo3>=2.9,<3",
        "torch>=2.8",
        "gymnasium[classic-control,mujoco]>=1.0",
        "optuna>=4.9",
        "tqdm",
        "rich",
        "moviepy>=2",
        "tensorboard",
        "requests",  # rl_zoo3.enjoy imports it without declaring it
    ],
    extras_require={
        "ogbench": ["ogbench>=1.2"],
        "robomimic": ["robosuite>=1.5.2,<1.6", "h5py>=3.8"],
        "minari": ["minari[hdf5,hf]>=0.5.3"],
        "onnx": ["onnx>=1.17", "onnxscript>=0.5", "onnxruntime>=1.20"],
        # rliable's dependency arch breaks on pandas 3
        "plots": ["rliable>=1.2", "matplotlib>=3.8", "plotly>=6", "pandas<3"],
        "postgresql": ["psycopg[binary]>=3.1"],  # studies that several machines share
        "ray": ["ray>=2.9"],  # benchmarks on a cluster
        "docs": ["sphinx>=8", "myst-parser>=4", "furo>=2024.8.6"],
        "dev": [
            *("setuptools>=70", "wheel", "h5py>=3.8", "pytest>=8", "pytest-xdist>=3", "hypothesis>=6", "scipy>=1.10"),
            *("ruff>=0.6", "mypy>=1.11", "types-PyYAML"),
        ],
    },
)
