"""Pictures of a study: how it went, which parameters matter, and the value over bc_coef and K.

    python -m sb3_flow.zoo.plot_study --storage study.log --study-name cube --out plots

Each picture is made as PNG and as HTML; the HTML files work without a network.
"""

import argparse
import importlib
import sys
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import optuna
from optuna.distributions import CategoricalDistribution
from optuna.trial import TrialState

from sb3_flow.common.checks import extra, require, require_choice
from sb3_flow.zoo.storage import load_study


def plot_study(study: optuna.Study, out: Path, contour: tuple[str, str] | None = None) -> list[Path]:
    """Draw a study's history, the importance of its parameters, and the value over two of them.

    :param study: the study
    :param out: folder of the files, which is made if it does not exist
    :param contour: names of two searched parameters; None for bc_coef (SAC Flow's beta, FQL's alpha) and K, or for the
        two most important ones of a study without bc_coef; with one searched parameter there is no such picture
    :return: the files
    :raises ImportError: if matplotlib or plotly is missing
    :raises ValueError: if the study has too few finished trials, or does not search these parameters
    """
    pictures = {"png": _import("matplotlib", "optuna.visualization.matplotlib")}
    pictures["html"] = _import("plotly", "optuna.visualization")
    complete = study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))
    require(len(complete) >= 2, "study_name", study.study_name, f"two finished trials or more; it has {len(complete)}")
    importance = _importance(study)
    pair = contour or _default_contour(importance)
    for name in pair:
        require_choice("contour", name, tuple(importance))
    out.mkdir(parents=True, exist_ok=True)
    files = []
    for suffix, module in pictures.items():
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)  # the PNGs', since 2020
            drawn = {
                "history": module.plot_optimization_history(study),
                "importance": module.plot_param_importances(study, evaluator=_evaluator(), params=list(importance)),
            }
            if pair:
                drawn["contour"] = module.plot_contour(study, params=list(pair))
        for name, drawing in drawn.items():
            files.append(out / f"{name}.{suffix}")
            _save(drawing, files[-1])
    return files


def _import(package: str, module: str) -> Any:
    try:
        importlib.import_module(package)
    except ImportError as error:
        raise ImportError(f"pictures of a study need {package}: {extra('plots')}") from error
    return importlib.import_module(module)


def _importance(study: optuna.Study) -> dict[str, float]:
    """Importance of what is searched, most important first; parameters with one choice only carry values."""
    trial = study.best_trial
    searched = [
        name
        for name, distribution in trial.distributions.items()
        if not (isinstance(distribution, CategoricalDistribution) and len(distribution.choices) == 1)
    ]
    return optuna.importance.get_param_importances(study, evaluator=_evaluator(), params=searched)


def _evaluator() -> optuna.importance.PedAnovaImportanceEvaluator:
    """Optuna 5's, which no other package is needed for; that of Optuna 4 wants scikit-learn."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        return optuna.importance.PedAnovaImportanceEvaluator()


def _default_contour(importance: dict[str, float]) -> Sequence[str]:
    for steps in ("flow_steps", "diffusion_steps"):
        if "bc_coef" in importance and steps in importance:
            return "bc_coef", steps
    return list(importance)[:2] if len(importance) >= 2 else ()


def _save(drawing: Any, path: Path) -> None:
    if path.suffix == ".html":
        drawing.write_html(path, include_plotlyjs="directory")
    else:
        drawing.figure.savefig(path, dpi=150, bbox_inches="tight")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--storage", required=True, help="a journal file that ends with .log, or a database's URL")
    parser.add_argument("--study-name", required=True)
    parser.add_argument("--contour", nargs=2, metavar=("X", "Y"), help="searched parameters (default: bc_coef and K)")
    parser.add_argument("--out", type=Path, default=Path("plots"))
    args = parser.parse_args()
    try:
        study = load_study(args.storage, args.study_name)
        for path in plot_study(study, args.out, args.contour):
            print(path)
        print(f"best: --trial-id {study.best_trial.number}, {study.best_value:.6g}")
    except (ImportError, ValueError) as error:
        sys.exit(str(error))


if __name__ == "__main__":
    main()
