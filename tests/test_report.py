"""Reports on made-up curves whose answer is known."""

import csv
import json
import re
import sys

import numpy as np
import pytest

pytest.importorskip("matplotlib")

import curves
import figures
import report
import scores


@pytest.fixture(autouse=True)
def _few_resamples(monkeypatch):
    monkeypatch.setattr(scores, "REPS", 200)


def write_run(folder, task, algo, seed, values, success=False, **settings):
    path = folder / task / algo / f"{seed}.csv"
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["step", curves.RETURN, curves.SUCCESS])
        writer.writerows([10 * (i + 1), value, value if success else ""] for i, value in enumerate(values))
    path.with_suffix(".jsonl").write_text(json.dumps({"steps": 10 * len(values), "overrides": settings}) + "\n")


@pytest.fixture
def folder(tmp_path):
    """Two tasks, on which Flow-T beats CrossQ in every run and is as good as SAC."""
    for task, scale in (("A-v4", 100.0), ("B-v4", -3.0)):
        for seed in range(3):
            better, worse = (2.0, 1.0) if scale > 0 else (1.0, 2.0)
            for algo, level in (("flow_t", better), ("sac", better), ("crossq", worse)):
                write_run(tmp_path, task, algo, seed, [0.0, scale * (level + 0.01 * seed)])
    return tmp_path


def test_the_offline_phase_is_that_of_the_runs_that_have_another(tmp_path):
    write_run(tmp_path, "lift", "flow_t", 1, [0.0, 1.0], offline_steps=10)
    write_run(tmp_path, "lift", "cloning", 1, [0.0, 1.0], offline_steps=10**9)
    assert curves.offline_steps(tmp_path) == {("lift", "flow_t"): 10}


def test_an_algorithm_with_more_steps_hides_no_other_and_one_that_was_stopped_is_left_out(tmp_path):
    write_run(tmp_path, "lift", "flow_t", 1, [0.0, 1.0], offline_steps=10)
    write_run(tmp_path, "lift", "reinflow", 1, [0.0] * 5, offline_steps=30)
    write_run(tmp_path, "lift", "fql", 1, [0.0, 1.0])
    record = tmp_path / "lift" / "fql" / "1.jsonl"
    record.write_text(json.dumps({"steps": 40, "overrides": {}}) + "\n")
    read = curves.read_curves(tmp_path)
    done = curves.finished(read, tmp_path)
    assert set(done) == {("lift", "flow_t"), ("lift", "reinflow")}
    assert curves.left_out(read, done) == ["lift fql seed 1 (20 steps)"]
    assert curves.offline_steps(tmp_path) == {("lift", "flow_t"): 10, ("lift", "reinflow"): 30, ("lift", "fql"): 0}


def test_runs_that_no_figure_can_show_are_named(tmp_path):
    write_run(tmp_path, "A-v4", "flow_x", 1, [0.0, 1.0])
    with pytest.raises(SystemExit, match=r"A-v4/flow_x: there is no algorithm 'flow_x'"):
        report.report(tmp_path, tmp_path / "a.png")
    (tmp_path / "A-v4" / "flow_x").rename(tmp_path / "A-v4" / "flow_t")
    path = tmp_path / "A-v4" / "flow_t" / "2.csv"
    path.write_text(f"step,{curves.RETURN}\n5,0\n10,0\n20,1\n")
    with pytest.raises(SystemExit, match="flow_t: its seeds were evaluated at different steps"):
        report.report(tmp_path, tmp_path / "a.png")


def test_seeds_of_different_settings_make_no_mean(tmp_path):
    for seed in (1, 2):
        write_run(tmp_path, "A-v4", "flow_t", seed, [0.0, 1.0])
    record = tmp_path / "A-v4" / "flow_t" / "2.jsonl"
    first = json.loads((tmp_path / "A-v4" / "flow_t" / "1.jsonl").read_text())
    same = {**first, "seed": 2, "commit": "other", "overrides": {**first["overrides"], "compile": True}}
    record.write_text(json.dumps(same) + "\n")
    report.report(tmp_path, tmp_path / "a.png")
    record.write_text(json.dumps({**same, "width": 1024}) + "\n")
    with pytest.raises(SystemExit, match="flow_t: its seeds differ in width; keep those alike in one folder"):
        report.report(tmp_path, tmp_path / "a.png")


def test_what_is_compared_are_the_last_scores_from_the_worst_run_to_the_best(folder):
    final = curves.final_scores(curves.finished(curves.read_curves(folder), folder))
    values = np.concatenate([task for tasks in final.values() for task in tasks.values()])
    assert values.min() == 0
    assert values.max() == 1
    beats = scores.improvement(final, "flow_t", "crossq")
    assert beats == (1.0, 1.0, 1.0)
    equal = scores.improvement(final, "flow_t", "sac")
    assert equal.low < equal.value == 0.5 < equal.high
    above, _ = scores.profiles(final, np.array([0.5]))["flow_t"]
    below, _ = scores.profiles(final, np.array([0.5]))["crossq"]
    assert (above, below) == (1, 0)


def test_every_run_counts_and_every_task_alike():
    final = {
        "flow_t": {"A-v4": np.array([1.0, 1.0, 1.0, 0.0]), "B-v4": np.array([1.0])},
        "sac": {"A-v4": np.array([0.5, 0.5]), "B-v4": np.array([0.5, 0.5, 2.0])},
    }
    beats = scores.improvement(final, "flow_t", "sac")
    assert beats.value == pytest.approx((3 / 4 + 2 / 3) / 2)
    assert beats.low < beats.value < beats.high
    share, ci = scores.profiles(final, np.array([0.7]))["flow_t"]
    assert share == pytest.approx((3 / 4 + 1) / 2)
    assert ci[0] < share < ci[1]


@pytest.mark.parametrize("seeds", [[3], [1, 1, 1, 1, 1]])
def test_runs_that_resampling_says_nothing_of_have_no_interval(seeds, tmp_path, capsys):
    for algo, level in (("flow_t", 1.0), ("crossq", 0.0)):
        for task, count in enumerate(seeds):
            for seed in range(count):
                write_run(tmp_path, f"{task}-v4", algo, seed, [0.0, level + seed])
    report.report(tmp_path, tmp_path / "x.png")
    assert re.search(r"P\(flow_t > crossq\) = \S+ \(too few runs for an interval\)", capsys.readouterr().out)
    with open(tmp_path / "summary.csv") as file:
        rows = list(csv.DictReader(file))
    assert {(row["ci_low"], row["ci_high"]) for row in rows} == {("", "")}
    assert [float(row["final_highest"]) - float(row["final_lowest"]) for row in rows] == [max(seeds) - 1] * len(rows)


def test_a_band_is_called_what_it_is():
    def band(*counts):
        return figures._band({("A-v4", str(i)): dict.fromkeys(range(count)) for i, count in enumerate(counts)})

    assert band(3, 1) == "range of the seeds"
    assert band(4, 5) == "95 % CI"
    assert band(3, 4) == "95 % CI (below 4 seeds their range)"


def test_intervals_are_the_same_every_time_and_leave_the_generator_alone():
    rng = np.random.default_rng(0)
    runs = {algo: {"A-v4": rng.normal(size=5)} for algo in ("flow_t", "crossq")}
    thresholds = np.linspace(-1, 1, 5)

    def intervals(seed):
        np.random.seed(seed)
        before = np.random.get_state()[1]
        found = (
            scores.improvement(runs, "flow_t", "crossq"),
            scores.iqm_and_ci(runs["flow_t"]["A-v4"]),
            scores.curve_and_ci(np.arange(25.0).reshape(5, 5), scores.mean)[1].tolist(),
            [ends.tolist() for ends in scores.profiles(runs, thresholds)["flow_t"]],
        )
        assert (np.random.get_state()[1] == before).all()
        return found

    assert intervals(1) == intervals(2)


def test_the_estimates_are_those_of_rliable():
    try:
        from rliable import library, metrics
    except (ImportError, TypeError):
        pytest.skip("there is no rliable, or it cannot be imported: its arch < 8 and pandas 3 do not go together")
    rng = np.random.default_rng(0)
    # Of different numbers of runs, with ties
    runs = {algo: rng.integers(0, 5, size=(n, 3)).astype(float) for algo, n in (("flow_t", 6), ("sac", 4))}
    by_task = {algo: dict(zip("ABC", of_algo.T, strict=True)) for algo, of_algo in runs.items()}

    def theirs(matrices, statistic):
        np.random.seed(0)
        points, ends = library.get_interval_estimates({"x": matrices}, statistic, reps=scores.REPS)
        return np.ravel([points["x"], *ends["x"]])

    final = runs["flow_t"][:, :1]
    expected = theirs(final, lambda x: np.array([metrics.aggregate_iqm(x)]))
    assert scores.iqm_and_ci(final[:, 0]) == pytest.approx(expected)
    expected = theirs(tuple(runs.values()), lambda *x: np.array([metrics.probability_of_improvement(*x)]))
    assert scores.improvement(by_task, "flow_t", "sac") == pytest.approx(expected)
    thresholds = np.linspace(-0.5, 4.5, 6)
    np.random.seed(0)
    shares, ends = library.create_performance_profile(runs, thresholds, reps=scores.REPS // 10)
    for algo, (share, ci) in scores.profiles(by_task, thresholds).items():
        np.testing.assert_allclose(share, shares[algo])
        np.testing.assert_allclose(ci, ends[algo])


def test_a_report_has_the_table_and_every_figure(folder, monkeypatch, capsys):
    write_run(folder, "A-v4", "flow_t", 9, [0.0])  # not finished: left out
    monkeypatch.setattr(sys, "argv", ["report", str(folder), "--figure", str(folder / "out" / "x.png")])
    report.main()
    assert {path.name for path in (folder / "out").iterdir()} == {"x.png", "x_profiles.png", "x_improvement.png"}
    printed = capsys.readouterr().out
    assert "P(flow_t > crossq) = 1.00 (1.00 - 1.00)" in printed
    assert "left out, as it is not finished: A-v4 flow_t seed 9 (10 steps)" in printed
    with open(folder / "summary.csv") as file:
        rows = {(row["task"], row["algo"]): row for row in csv.DictReader(file)}
    assert rows["A-v4", "flow_t"]["final_mean"] == "201"
    assert rows["A-v4", "flow_t"]["seeds"] == "0 1 2"


def test_the_table_averages_the_last_five_evaluations_of_each_seed(tmp_path):
    write_run(tmp_path, "A-v4", "flow_t", 0, [900.0, 1.0, 2.0, 3.0, 4.0, 5.0])
    write_run(tmp_path, "A-v4", "flow_t", 1, [900.0, 11.0, 21.0, 31.0, 41.0, 51.0])
    report.report(tmp_path, tmp_path / "x.png")
    with open(tmp_path / "summary.csv") as file:
        assert next(csv.DictReader(file))["last_five_mean"] == "17"  # of 3 and 31


@pytest.mark.slow
def test_the_iqm_over_time_is_rliables_and_is_drawn_from_four_seeds_on(tmp_path):
    metrics = pytest.importorskip("rliable.metrics")
    values = np.random.default_rng(0).normal(size=(9, 3))
    for seed, run in enumerate(values):
        write_run(tmp_path, "A-v4", "flow_t", seed, run)
        report.report(tmp_path, tmp_path / "x.png")
        of_each = [metrics.aggregate_iqm(values[: seed + 1, i]) for i in range(3)]
        assert scores.iqm(values[: seed + 1]) == pytest.approx(of_each)
        assert (tmp_path / "x_iqm.png").exists() == (seed >= 3)
    point, (low, high) = scores.curve_and_ci(values, scores.iqm)
    assert point == pytest.approx(scores.iqm(values))
    assert (low < point).all()
    assert (point < high).all()


def test_success_has_its_own_table_and_the_offline_phase_its_shade(tmp_path, monkeypatch):
    shades, limits = [], []
    monkeypatch.setattr("matplotlib.axes.Axes.axvspan", lambda axes, low, high, **_: shades.append((low, high)))
    monkeypatch.setattr("matplotlib.axes.Axes.set_ylim", lambda axes, *ends, **_: limits.append(ends))
    for seed in range(2):
        write_run(tmp_path, "cube", "flow_t", seed, [0.25, 0.5], success=True, offline_steps=10)
    report.report(tmp_path, tmp_path / "x.png", "success")
    assert shades == [(0, 0.01)]
    assert pytest.approx((-0.03, 1.03)) in limits
    assert "0.50" in (tmp_path / "summary.csv").read_text()


def test_nothing_to_report_is_one_line(folder, tmp_path):
    message = "has no finished runs with a success_rate: benchmarks/learning.py makes them"
    with pytest.raises(SystemExit, match=re.escape(message)):
        report.report(folder, tmp_path / "x.png", "success")


def test_where_nothing_is_finished_what_is_begun_is_named(tmp_path):
    write_run(tmp_path, "A-v4", "flow_t", 1, [0.0])
    (tmp_path / "A-v4" / "flow_t" / "1.jsonl").write_text(json.dumps({"steps": 20, "overrides": {}}) + "\n")
    with pytest.raises(SystemExit, match=r"no finished runs .*: begun are A-v4 flow_t seed 1 \(10 steps\)$"):
        report.report(tmp_path, tmp_path / "x.png")


def test_variants_have_names_colours_and_an_order():
    algos = ["flow_t+K10", "crossq", "flow_t+K4", "flow_t"]
    assert figures.in_order(algos) == ["flow_t", "flow_t+K4", "flow_t+K10", "crossq"]
    assert len(set(figures.colors(algos).values())) == 4
    assert figures.label("flow_t+K4") == "SAC Flow-T, K4"
    assert figures.label("flow_t+free") == "SAC Flow-T, β = 0"


def test_tasks_that_one_algorithm_lacks_are_named_where_they_are_left_out(folder, capsys):
    (folder / "B-v4" / "sac").rename(folder / "moved")
    report.report(folder, folder / "a.png")
    assert "The profiles leave out B-v4, which sac lacks" in capsys.readouterr().out
