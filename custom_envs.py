"""rl-zoo3 imports a module of this name at start-up; ours adds our algorithms to `--algo` (docs/rl_zoo3.md)."""

import sb3_flow.zoo

sb3_flow.zoo.register()
