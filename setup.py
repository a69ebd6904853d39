import os
import re
from pathlib import Path

from setuptools import find_packages, setup

HERE = Path(__file__).parent
VERSION = re.search(r'__version__ = "(.+)"', (HERE / "sb3_flow" / "__init__.py").read_text())
assert VERSION is not None


def description() -> str:
    """The README; where GitHub's workflow builds, its links lead there: PyPI has the text without the files."""
    readme = (HERE / "README.md").read_text()
    repository = os.environ.get("GITHUB_REPOSITORY")
    if repository is None:
        return readme
    home = f"{os.environ.get('GITHUB_SERVER_URL', 'https://github.com')}/{repository}"
    images = re.sub(r"(!\[[^\]]*\]\()(?!http)", rf"\g<1>{home}/raw/main/", readme)
    return re.sub(r"(\]\()(?!http|#)", rf"\g<1>{home}/blob/main/", images)


setup(
    name="sb3_flow",
    version=VERSION.group(1),
    description="Flow and diffusion policies for Stable-Baselines3: SAC Flow and what it is compared with",
    long_description=description(),
    long_description_content_type="text/markdown",
    license_expression="MIT",
    license_files=["LICENSE"],
    keywords=["reinforcement learning", "flow matching", "diffusion policy", "stable-baselines3", "pytorch"],
    classifiers=[
        "Development Status :: 4 - Beta",
        "Intended Audience :: Science/Research",
        "Operating System :: OS Independent",
        "Programming Language :: Python :: 3.11",
        "Programming Language :: Python :: 3.12",
        "Programming Language :: Python :: 3.13",
        "Topic :: Scientific/Engineering :: Artificial Intelligence",
        "Typing :: Typed",
    ],
    python_requires=">=3.11",
    packages=[*find_packages(include=["sb3_flow", "sb3_flow.*"]), "sb3_flow.hyperparams"],
    package_dir={"sb3_flow.hyperparams": "hyperparams"},
    # rl_zoo3 imports a module of this name at start-up; it is how our algorithms become known (docs/rl_zoo3.md)
    py_modules=["custom_envs"],
    package_data={"sb3_flow": ["py.typed"], "sb3_flow.hyperparams": ["*.yml"]},
    install_requires=[
        "stable-baselines3>=2.9.2,<3",
        "sb3-contrib>=2.9.2,<3",
        "rl-zoo3>=2.9.2,<3",  # with earlier ones, what is pushed to the hub has no video
        "torch>=2.8",
        "numpy>=1.26",
        "gymnasium[classic-control,mujoco]>=1.0",
        "mujoco>=3.1.6",
        "optuna>=4.9",
        "pandas>=2",  # Optuna's table of trials, with which every search ends, needs it without declaring it
        "tqdm>=4.66",
        "rich>=13",
        "moviepy>=2",
        "tensorboard>=2.15",
        "requests>=2.31",  # rl_zoo3.enjoy imports it without declaring it
    ],
    extras_require={
        "ogbench": ["ogbench>=1.2"],
        "robomimic": ["robosuite>=1.5.2,<1.6", "h5py>=3.8"],
        "minari": ["minari[hdf5,hf]>=0.5.3"],
        "lerobot": ["pyarrow>=15", "av>=15", "huggingface_hub>=0.23"],
        "onnx": ["onnx>=1.17", "onnxscript>=0.6.1", "onnxruntime>=1.20"],  # onnxscript 0.6.0 fails with torch 2.8
        "plots": ["matplotlib>=3.8", "plotly>=6"],
        "postgresql": ["psycopg[binary]>=3.1"],  # studies that several machines share
        "ray": ["ray>=2.9"],  # benchmarks on a cluster
        "docs": ["sphinx>=8", "myst-parser>=4", "furo>=2024.8.6"],
        "dev": [
            *("setuptools>=77", "pytest>=8", "pytest-xdist>=3.7", "hypothesis>=6.100"),
            *("h5py>=3.8", "scipy>=1.11", "rliable>=1.2"),  # what tests write, and compare with
            *("ruff>=0.6", "mypy>=1.11", "types-PyYAML>=6", "pre-commit>=3.5"),
        ],
    },
)
