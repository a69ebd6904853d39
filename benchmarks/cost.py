"""What sb3_flow costs beside SB3: import time, and peak memory of training at the paper's size.

    python benchmarks/cost.py

Every measurement is a fresh process; the contenders are interleaved and the medians compared.
"""

import argparse
import statistics
import subprocess
import sys
import time

from records import machine

TRAIN = """
import resource
from {module} import {algo}
model = {algo}("{policy}", "{task}", buffer_size={buffer}, learning_starts=1000, batch_size=512, seed=0, device="cpu",
               policy_kwargs={{"net_arch": {arch}}}{further})
model.learn(1100)
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024)
"""
FLOW_T, DIME = ("SACFlow", "FlowTPolicy"), ("DIME", "DIMEPolicy")
IMPORTS = {"stable_baselines3": "import stable_baselines3", "sb3_flow": "import sb3_flow"}


def seconds(code: str) -> float:
    start = time.perf_counter()
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)
    return time.perf_counter() - start


def peak_mib(module: str, algo: str, policy: str, task: str, buffer: int, arch: str, further: str = "") -> float:
    code = TRAIN.format(module=module, algo=algo, policy=policy, task=task, buffer=buffer, arch=arch, further=further)
    run = subprocess.run([sys.executable, "-W", "ignore", "-c", code], check=True, capture_output=True, text=True)
    return float(run.stdout.split()[-1])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--task", default="HalfCheetah-v4")
    parser.add_argument("--buffer", type=int, default=1_000_000)
    parser.add_argument("--repeats", type=int, default=7)
    args = parser.parse_args()

    times: dict[str, list[float]] = {name: [] for name in IMPORTS}
    for _ in range(args.repeats + 1):
        for name, code in IMPORTS.items():
            times[name].append(seconds(code))
    medians = {name: statistics.median(values[1:]) for name, values in times.items()}  # the first round fills caches
    for name, values in times.items():
        print(f"import {name:18} {medians[name]:.2f} s  ({min(values[1:]):.2f} - {max(values[1:]):.2f})")
    print(f"ratio {medians['sb3_flow'] / medians['stable_baselines3']:.3f}")

    arch = "[256, 256]"
    sac = peak_mib("stable_baselines3", "SAC", "MlpPolicy", args.task, args.buffer, arch)
    print(f"\npeak memory, {args.task}, buffer {args.buffer}\n  SB3 SAC 256-256            {sac:6.0f} MiB")
    critics = '{"qf": [1024, 1024]}'
    # The first compiled run may compile, the second finds its kernels on disk
    compiled = [(algo, policy, ", compile=True") for algo, policy in (FLOW_T, DIME) for _ in range(2)]
    eager = [("SACFlow", f"Flow{net}Policy", "") for net in ("T", "G", "MLP")]
    eager += [("FQL", "FQLPolicy", ""), ("FlowRL", "FlowRLPolicy", ""), ("QSM", "QSMPolicy", ""), (*DIME, "")]
    for algo, policy, further in eager + compiled:
        flow = peak_mib("sb3_flow", algo, policy, args.task, args.buffer, critics, further)
        print(f"  {algo:7} {policy:13} critics 1024-1024{further:15} {flow:6.0f} MiB  ({flow - sac:+.0f})")
    print(machine())


if __name__ == "__main__":
    main()
