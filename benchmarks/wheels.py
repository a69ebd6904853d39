"""What sb3_flow needs and a CUDA machine without a network has not, as wheels in one folder: some 15 MB.

    python benchmarks/wheels.py                    # into .whl, for Python 3.12 on Linux x86-64
    python -m pip install --no-index --no-deps --target /tmp/site .whl/*.whl       # there

The versions are those of this environment. PyTorch, NumPy, pandas, Matplotlib, pytest and Hypothesis must be there.
"""

import argparse
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

# mujoco imports the three behind it; what Gymnasium and SB3 need else comes with PyTorch
PACKAGES = (
    *("stable-baselines3", "sb3-contrib", "gymnasium", "farama-notifications", "cloudpickle"),
    *("mujoco", "glfw", "pyopengl", "etils"),
)
PLATFORMS = ("manylinux_2_28_x86_64", "manylinux_2_27_x86_64", "manylinux_2_17_x86_64", "manylinux2014_x86_64")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path(".whl"))
    parser.add_argument("--python", default="3.12")
    args = parser.parse_args()
    target = ["--no-deps", "--only-binary=:all:", "--implementation", "cp", "--python-version", args.python]
    platforms = [word for platform in PLATFORMS for word in ("--platform", platform)]
    wanted = [f"{name}=={version(name)}" for name in PACKAGES]
    command = [sys.executable, "-m", "pip", "download", "-q", "--disable-pip-version-check", *target, *platforms]
    subprocess.run([*command, "-d", str(args.out), *wanted], check=True)
    sizes = {path.name: path.stat().st_size / 2**20 for path in sorted(args.out.glob("*.whl"))}
    for name, size in sizes.items():
        print(f"{size:6.1f} MiB  {name}")
    print(f"{sum(sizes.values()):6.1f} MiB in {args.out}")


if __name__ == "__main__":
    main()
