"""Many runs: their order, skipped and failed ones, and stopping. A script that writes the files of main replaces it."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

import scripted_main
import tiny_runs
from experiments import gap_study, grids, study, table_online
from experiments.table_cifar import STUDY
from experiments.table_online import STUDY as ONLINE_STUDY
from switokd_jax import sweep
from switokd_jax.analysis import job_runner
from switokd_jax.analysis.job_workers import Processes
from switokd_jax.analysis.jobs import Job
from switokd_jax.analysis.tables import MeanStd
from switokd_jax.errors import UserError
from switokd_jax.methods import METHODS
from switokd_jax.train import run_spec

ROOT = Path(__file__).parents[2]


@pytest.fixture
def fake_main(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    script = tmp_path / "main.py"
    script.write_text(scripted_main.MAIN)
    monkeypatch.setattr(
        Job,
        "command",
        lambda job, folder: [sys.executable, str(script), str(folder / job.name), job.config, *job.flags],
    )
    return tmp_path / "grid"


def times(folder: Path, name: str) -> tuple[float, float]:
    began, ended = map(float, (folder / name / "times").read_text().split())
    return began, ended


def ignore(line: str) -> None:
    """Takes a line of progress that a test does not look at."""


@pytest.mark.slow
def test_a_job_starts_after_those_it_depends_on(fake_main: Path) -> None:
    jobs = [Job("last", "works.py", depends_on=("a", "b")), *(Job(name, "works.py") for name in "ab")]
    assert job_runner.run(jobs, fake_main, Processes([[0]] * 2), log=ignore) == {}
    assert times(fake_main, "last")[0] > max(times(fake_main, "a")[1], times(fake_main, "b")[1])


@pytest.mark.slow
def test_as_many_jobs_run_as_are_allowed(fake_main: Path) -> None:
    job_runner.run([Job(name, "works.py") for name in "abcd"], fake_main, Processes([[0]] * 2), log=ignore)
    spans = [times(fake_main, name) for name in "abcd"]
    assert max(sum(began <= moment < ended for began, ended in spans) for moment, _ in spans) == 2


@pytest.mark.slow
def test_jobs_start_in_the_order_of_the_list(fake_main: Path) -> None:
    """Also those that wait for others: a grid fills seed by seed."""
    names = ["vanilla_0", "kd_0", "vanilla_1", "kd_1"]
    jobs = [Job(name, "works.py", depends_on=(f"vanilla_{name[-1]}",) if "kd" in name else ()) for name in names]
    job_runner.run(jobs, fake_main, log=ignore)
    assert sorted(names, key=lambda name: times(fake_main, name)[0]) == names


@pytest.mark.slow
def test_each_result_is_logged_and_kept(fake_main: Path) -> None:
    lines: list[str] = []
    job_runner.run([Job("a", "works.py"), Job("b", "works.py")], fake_main, log=lines.append)
    assert [line.split(",")[0] for line in lines] == ["[1/2] a: student 90.00 %", "[2/2] b: student 90.00 %"]
    result = json.loads((fake_main / "results" / "b.json").read_text())
    assert (result["config"], result["summary"]["networks"]["student"]["best_top1"]) == ("works.py", 91.0)


@pytest.mark.slow
def test_finished_jobs_are_skipped(fake_main: Path) -> None:
    """Also with another folder for the data, which may change between two starts."""
    job_runner.run([Job("a", "works.py", ("--config.seed=0", "--config.data.dir=here"))], fake_main, log=ignore)
    before = times(fake_main, "a")
    lines: list[str] = []
    jobs = [Job("a", "works.py", ("--config.seed=0", "--config.data.dir=there")), Job("b", "works.py")]
    job_runner.run(jobs, fake_main, log=lines.append)
    assert lines[0] == "1 of 2 runs are done"
    assert times(fake_main, "a") == before


def kept_jobs(repository: Path, folder: Path) -> list[Job]:
    """A student of a frozen teacher, with the paths of one machine."""
    init_from = f"--config.networks.teacher.init_from={folder}/vanilla:teacher@latest"
    return [
        Job("vanilla", "works.py", kept=repository / "vanilla.json"),
        Job("kd", "works.py", (init_from,), depends_on=("vanilla",), kept=repository / "kd.json"),
    ]


@pytest.mark.slow
def test_results_of_another_machine_count(fake_main: Path, tmp_path: Path) -> None:
    """A kept result has the config and the curves, too, but no folder; it is not written a second time."""
    repository = tmp_path / "results"
    ours, theirs = fake_main / "ours", fake_main / "theirs"
    assert job_runner.run(kept_jobs(repository, ours), ours, log=ignore) == {}
    kept = json.loads((repository / "kd.json").read_text())
    assert kept["summary"]["networks"]["student"]["best_top1"] == 91.0
    assert kept["epochs"] == [{"epoch": 1.0, "test/top1": 90.0, "train/loss": 1.5}]
    assert kept["parsed_config"]["networks"]["teacher"]["init_from"] == "vanilla:teacher@latest"
    assert kept["flags"] == ["--config.networks.teacher.init_from=vanilla:teacher@latest"]
    assert kept["parsed_config"]["data"] == {"dir": "", "name": "digits"}
    assert str(tmp_path) not in json.dumps(kept)
    lines: list[str] = []
    assert job_runner.run(kept_jobs(repository, theirs), theirs, log=lines.append) == {}
    assert lines == ["2 of 2 runs are done"]
    assert not (theirs / "kd").exists()
    assert job_runner.read_result(kept_jobs(repository, theirs)[1], theirs) == kept["summary"]


@pytest.mark.slow
def test_a_teacher_of_another_machine_is_trained_again(fake_main: Path, tmp_path: Path) -> None:
    """Its result is kept; its checkpoints are not here."""
    repository = tmp_path / "results"
    ours, theirs = fake_main / "ours", fake_main / "theirs"
    job_runner.run(kept_jobs(repository, ours)[:1], ours, log=ignore)
    before = (repository / "vanilla.json").stat().st_mtime_ns
    assert job_runner.run(kept_jobs(repository, theirs), theirs, log=ignore) == {}
    assert times(theirs, "kd")[0] > times(theirs, "vanilla")[1]
    assert (repository / "vanilla.json").stat().st_mtime_ns == before
    (theirs / "vanilla" / "checkpoints").mkdir()
    (repository / "kd.json").unlink()
    (theirs / "results" / "kd.json").unlink()
    trained = times(theirs, "vanilla")
    job_runner.run(kept_jobs(repository, theirs), theirs, log=ignore)
    assert times(theirs, "vanilla") == trained
    (theirs / "vanilla" / "summary.json").unlink()  # as of a run that was interrupted there
    assert [job.name for job in job_runner.unfinished_jobs(kept_jobs(repository, theirs), theirs)] == []
    for path in (repository / "kd.json", theirs / "results" / "kd.json"):
        path.unlink()
    job_runner.run(kept_jobs(repository, theirs), theirs, log=ignore)
    assert times(theirs, "vanilla") != trained


def test_only_settings_that_keep_results_have_a_place_for_them(tmp_path: Path) -> None:
    by_name = {setting.name: setting for setting in STUDY.full}
    kept = grids.jobs([by_name["cifar100_short"]], ["vanilla"], [3], tmp_path)
    assert [job.kept for job in kept] == [ROOT / "results/cifar100_short/cifar100_short_vanilla_seed3.json"]
    shorter = grids.jobs([by_name["cifar100_short"]], ["vanilla"], [3], tmp_path, epochs=1.0)
    others = grids.jobs([by_name["cifar100_small"]], ["vanilla"], [3], tmp_path)
    assert [job.kept for job in (*shorter, *others)] == [None, None]


@pytest.mark.slow
def test_a_result_of_other_flags_is_refused(fake_main: Path) -> None:
    job_runner.run([Job("a", "works.py", ("--config.seed=0",))], fake_main, log=ignore)
    with pytest.raises(UserError, match=r"seed=0.*not works.py --config.seed=1; choose another --workdir"):
        job_runner.run([Job("a", "works.py", ("--config.seed=1",))], fake_main)


@pytest.mark.slow
def test_a_failed_job_stops_only_those_that_depend_on_it(fake_main: Path) -> None:
    jobs = [Job("bad", "fails.py"), Job("needs_it", "works.py", depends_on=("bad",)), Job("good", "works.py")]
    failed = job_runner.run(jobs, fake_main, log=ignore)
    assert failed == {"bad": "config.epochs is 0", "needs_it": "it needs bad, which failed"}
    assert job_runner.read_result(jobs[2], fake_main) is not None
    assert "some output" in (fake_main / "logs" / "bad.txt").read_text()


@pytest.mark.slow
def test_jobs_that_can_never_start_fail(fake_main: Path) -> None:
    jobs = [Job("a", "works.py", depends_on=("b",)), Job("b", "works.py", depends_on=("elsewhere",))]
    failed = job_runner.run(jobs, fake_main, log=ignore)
    assert failed == {"a": "it needs b, which never ran", "b": "it needs elsewhere, which never ran"}


def sweep_table(jobs: dict[tuple[str, ...], list[Job]], summaries: Mapping[str, Any]) -> sweep.Table:
    by_values = {values: [summaries[job.name] for job in seeds] for values, seeds in jobs.items()}
    return sweep.table("A sweep", ["batch_size"], by_values, "")


def test_a_sweep_has_a_job_for_each_value_and_seed() -> None:
    jobs = [job for seeds in sweep.jobs("works.py", {"batch_size": ["32", "64"]}, [0, 1], []).values() for job in seeds]
    assert [job.name for job in jobs][:2] == ["batch_size=32_seed=0", "batch_size=32_seed=1"]
    assert jobs[2].flags == ("--config.batch_size=64", "--config.seed=0")


@pytest.mark.slow
def test_a_sweep_with_a_failure_still_writes_its_table(fake_main: Path) -> None:
    jobs = sweep.jobs("works.py", {"batch_size": ["32", "64"]}, [0, 1], [])
    all_jobs = [*(job for seeds in jobs.values() for job in seeds), Job("bad", "fails.py")]
    with pytest.raises(UserError, match="1 of 5 runs failed; bad"):
        sweep.run_and_tabulate(
            all_jobs, fake_main, sweep.Execution(Processes([[0]] * 2)), lambda summaries: sweep_table(jobs, summaries)
        )
    assert "| 64 | 90.00 ± 0.00 | 91.00 ± 0.00 | - |" in (fake_main / "table.md").read_text()


@pytest.mark.slow
def test_a_sweep_without_any_result_names_the_failure(fake_main: Path) -> None:
    with pytest.raises(UserError, match="no run succeeded; bad"):
        sweep.run_and_tabulate(
            [Job("bad", "fails.py")],
            fake_main,
            sweep.Execution(Processes()),
            lambda summaries: sweep_table({}, summaries),
        )


PLANNED = [Job("a", "works.py", flops=3e9), Job("b", "works.py", flops=90e9)]


def test_a_plan_assumes_a_rate_until_a_job_has_finished(tmp_path: Path) -> None:
    lines = job_runner.plan(PLANNED, tmp_path, max_parallel=1, flops_per_second=1e9, start=10.0).splitlines()
    assert [line.split() for line in lines[1:3]] == [["a", "to", "do", "13", "s"], ["b", "to", "do", "2", "min"]]
    assert lines[-1] == "2 of 2 runs, about 2 min with 1 at a time (1 GFLOP/s, assumed)"


@pytest.mark.slow
def test_a_plan_takes_the_rate_of_the_finished_jobs(fake_main: Path) -> None:
    job_runner.run(PLANNED[:1], fake_main, log=ignore)  # 2 GFLOP in 4 s
    lines = job_runner.plan(PLANNED, fake_main, max_parallel=2, flops_per_second=1e9, start=10.0).splitlines()
    assert lines[1].split() == ["a", "done"]
    assert lines[-1] == "1 of 2 runs, about 2 min with 2 at a time (0 GFLOP/s, as those done)"


def test_a_plan_without_counted_operations_has_no_time(tmp_path: Path) -> None:
    assert job_runner.plan([Job("new", "works.py")], tmp_path, 1).splitlines()[-1] == "1 of 1 runs"


def test_a_plan_says_which_jobs_resume(tmp_path: Path) -> None:
    (tmp_path / "a" / "checkpoints").mkdir(parents=True)
    assert job_runner.plan(PLANNED, tmp_path, 1, 1e9).splitlines()[1].split() == ["a", "resumes", "33", "s"]


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_running_jobs_save_when_the_runner_is_stopped(tmp_path: Path, number: signal.Signals) -> None:
    script, folder = tmp_path / "main.py", tmp_path / "grid"
    script.write_text(scripted_main.MAIN)
    driver = f"""
import sys
from pathlib import Path
from switokd_jax.analysis import job_runner
from switokd_jax.analysis.job_workers import Processes
from switokd_jax.analysis.jobs import Job
Job.command = lambda job, folder: [sys.executable, {str(script)!r}, str(folder / job.name), job.config]
jobs = [Job("one", "waits.py"), Job("two", "waits.py")]
job_runner.run(jobs, Path({str(folder)!r}), Processes([[0]] * 2))
"""
    process = subprocess.Popen([sys.executable, "-c", driver], cwd=ROOT, start_new_session=True)
    limit = time.monotonic() + 120
    while not all((folder / name / "began").exists() for name in ("one", "two")):
        assert time.monotonic() < limit
        time.sleep(0.05)
    os.kill(process.pid, number)
    assert process.wait(timeout=120) != 0
    assert all((folder / name / "saved").exists() for name in ("one", "two"))


def test_every_arm_of_the_smoke_table_has_a_config_that_parses() -> None:
    points = grids.jobs(STUDY.smoke, [], [0, 1], Path("runs/somewhere"))
    assert len(points) == 2 * len(STUDY.smoke[0].arms)
    for job, point in points.items():
        config = grids.parse_config(job)
        assert (config.seed, config.epochs) == (point.seed, 5.0)
        assert config.networks["student"].milestones == (3.5, 4.75)  # epochs 11 and 16 of the recipe's 20
        assert study.run_flops(config) > 0


def test_the_table_of_online_methods_has_all_of_them() -> None:
    """Each with four nodes and a plan that its method accepts."""
    points = grids.jobs(ONLINE_STUDY.smoke, [], [0], Path("runs/somewhere"))
    assert {name for name, method in METHODS.items() if not method.offline} <= {point.arm for point in points.values()}
    for job, point in points.items():
        config = grids.parse_config(job)
        assert config.method == point.arm.removesuffix("_branches")
        assert [*config.network_of] == [f"student_{i}" for i in range(1, 5)]
        assert len(run_spec.make_topology(config).nodes) == 4


def test_a_row_of_the_online_table_is_that_of_the_evaluation(tmp_path: Path) -> None:
    """Means over the peers, by hand; the evaluation is read from peers.json."""
    points = grids.jobs(ONLINE_STUDY.smoke, ["dml"], [0], tmp_path)
    (job,) = points
    peers = {f"student_{i}": {"top1": 90.0 + i, "calibration_error": 0.01 * i} for i in (1, 2, 3)}
    found = {"networks": peers, "ensemble": {"top1": 95.0, "calibration_error": 0.005}}
    (tmp_path / job.name).mkdir()
    (tmp_path / job.name / "peers.json").write_text(json.dumps(found))
    summary = {"training_flops": 2e9, "seconds": 4.0}
    table = table_online.make_table(ONLINE_STUDY, points, {job.name: summary}, tmp_path)
    assert table.rows[0][:3] == ("digits", "dml", None)
    means = [cell.mean for cell in table.rows[0][3:] if isinstance(cell, MeanStd)]
    assert means == pytest.approx([92.0, 93.0, 93.0, 95.0, 2.0, 0.5, 2.0, 4.0])


def test_offline_arms_read_the_vanilla_run_of_their_seed() -> None:
    points = grids.jobs(STUDY.smoke, [], [0, 1], Path("runs/somewhere"))
    offline = {job: point for job, point in points.items() if point.setting.arms[point.arm].offline}
    assert len(offline) == 2 * 8
    for job, point in offline.items():
        teacher = grids.parse_config(job).networks["teacher"]
        assert job.depends_on == (f"digits_vanilla_seed{point.seed}",)
        assert teacher.frozen
        assert job.depends_on[0] in teacher.init_from


def test_rco_learns_from_four_checkpoints_of_its_teacher() -> None:
    (rco, *_) = (job for job in grids.jobs(STUDY.smoke, [], [0], Path("runs/somewhere")) if "rco" in job.name)
    config = grids.parse_config(rco)
    assert config.networks["teacher"].init_from.endswith("@23")
    assert [anchor.rpartition("@")[2] for anchor in config.hyperparameters.anchors] == ["46", "69", "latest"]


def test_the_note_of_a_table_has_the_size_of_its_runs() -> None:
    note = study.note(grids.jobs(STUDY.smoke, [], [0, 1], Path("runs/somewhere")), "GFLOP")
    assert "seeds 0, 1. 5 epochs of 1,437 images of digits in batches of 64. 'final'" in note
    assert "for kdcl_general of the one that is best on images held out of training" in note


def test_chosen_offline_arms_bring_their_teacher() -> None:
    points = grids.jobs(STUDY.full[:1], ["kd"], [3], Path("runs/x"))
    assert [point.arm for point in points.values()] == ["vanilla", "kd"]


def test_chosen_epochs_scale_the_milestones() -> None:
    points = grids.jobs(STUDY.full[:1], ["kd"], [3], Path("runs/x"), epochs=29.9, flags=["--config.dtype=bfloat16"])
    config = grids.parse_config(next(iter(points)))
    assert (config.epochs, config.dtype) == (29.9, "bfloat16")
    assert config.networks["teacher"].milestones == pytest.approx((14.9, 20.9, 25.9), abs=1e-3)


def test_an_unknown_arm_is_named() -> None:
    with pytest.raises(UserError, match="--arms 'switokdd' is none of"):
        grids.jobs(STUDY.full, ["switokdd"], [0], Path("runs/x"))


def test_the_expert_share_is_the_mean_over_pairs_and_then_over_seeds() -> None:
    """A run that switches nothing does not count."""
    seeds = [{"switch": {"a->s": {"expert_fraction": a}, "b->s": {"expert_fraction": 0.5}}} for a in (0.1, 0.3)]
    share = sweep.expert_share([*seeds, {"switch": {}}])
    assert isinstance(share, MeanStd)
    assert share.values == pytest.approx((30.0, 40.0))
    assert share.text() == "35.0 ± 7.1"


def test_there_is_no_expert_share_without_switching() -> None:
    assert sweep.expert_share([{"switch": {}}]) is None


def write_gap_run(folder: Path, name: str, gaps: Sequence[float]) -> None:
    """Writes the files of a finished run whose first step is in the first of two epochs, all others in the second."""
    workdir = folder / f"digits_{name}"
    workdir.mkdir()
    teacher, student = {"model": "wrn_10_1", "parameters": 77898}, {"final_top1": 80.0 + 2 * int(name[-1])}
    switch = {"teacher->student": {"expert_fraction": 0.0}} if gaps else {}
    summary = {"networks": {"teacher": teacher, "student": student}, "epochs": 2.0, "switch": switch}
    (workdir / "summary.json").write_text(json.dumps(summary))
    (workdir / "config.json").write_text("{}")
    rows = [
        {"split": "train", "epoch": epoch, "teacher->student/gap": gap}
        for epoch, gap in zip((1.0, 1.5, 2.0), gaps, strict=False)
    ]
    (workdir / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


@pytest.fixture
def gap_runs(tmp_path: Path) -> Path:
    """Two seeds of DML, one run without distillation, and one that does not belong to the study."""
    for name, gaps in (("dml_seed0", (9.0, 1.0, 2.0)), ("dml_seed1", (9.0, 3.0, 4.0)), ("vanilla_seed0", ())):
        write_gap_run(tmp_path, name, gaps)
    write_gap_run(tmp_path, "other_seed0", (5.0,))
    return tmp_path


def test_the_gap_study_reads_the_gaps_of_the_last_epoch(gap_runs: Path) -> None:
    vanilla, dml = gap_study.read_points(gap_runs)
    assert (vanilla.arm, vanilla.top1.values, vanilla.gap.values) == ("vanilla", (80.0,), ())
    assert (dml.arm, dml.teacher, dml.parameters) == ("dml", "wrn_10_1", 77898)
    assert (dml.top1.values, dml.gap.values) == ((80.0, 82.0), (1.5, 3.5))


def test_the_gap_study_writes_a_figure_and_its_numbers(gap_runs: Path) -> None:
    assert [path.name for path in gap_study.finish(gap_runs)] == ["gap.png", "gap.md", "gap.csv", "gap.tex"]
    row = (gap_runs / "gap.md").read_text().splitlines()[5]
    assert row == "| dml | wrn_10_1 | 77,898 | 81.00 ± 1.41 | 2.500 ± 1.414 |"


def test_rco_needs_four_epochs() -> None:
    with pytest.raises(UserError, match=r"arm 'rco' learns from 4 checkpoints .* at least --epochs=4"):
        grids.jobs(STUDY.smoke, [], [0], Path("runs/x"), epochs=3)


def test_other_arms_need_one_epoch() -> None:
    points = grids.jobs(STUDY.smoke, ["kd"], [0], Path("runs/x"), epochs=1)
    assert {grids.parse_config(job).epochs for job in points} == {1.0}


@pytest.mark.slow
def test_a_smoke_table_trains_once(tmp_path: Path) -> None:
    """The second time there is nothing left to do."""
    command = [sys.executable, "experiments/table_cifar.py", "--smoke", f"--workdir={tmp_path}", "--arms", "vanilla"]
    command += ["--seeds", "0", "--epochs=1", "--", "--config.networks.teacher.model=resnet8"]
    command += ["--config.networks.student.model=resnet8", "--config.data.train_examples=640"]
    for expected in ("[1/1] digits_vanilla_seed0", "1 of 1 runs are done"):
        done = subprocess.run(
            command, cwd=ROOT, env=tiny_runs.environment(), capture_output=True, text=True, timeout=300, check=True
        )
        assert expected in done.stdout
    rows = [line for line in (tmp_path / "table.md").read_text().splitlines() if line.startswith("| digits")]
    assert [row.split(" | ")[1] for row in rows] == ["vanilla"]
    assert (tmp_path / "table.tex").exists()
    assert (tmp_path / "results" / "digits_vanilla_seed0.json").exists()


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--seeds", "0", "--over", "seed=1,2"], "--over seed=... has no effect beside --seeds"),
        (["--seeds", "0", "0"], "two runs have the name seed=0; give each seed and each value once"),
        (["--over", "batch_size=32,32"], "--over batch_size=32,32 names a value twice"),
        (["--over", "batch_size=32", "--over", "batch_size=64"], "--over names a field twice"),
        (
            ["--over", "batch_size=32", "--", "--config.batch_size=64"],
            "--config.batch_size after -- is set by the sweep",
        ),
        (["--", "--workdir=elsewhere"], "--workdir after -- is set by the sweep itself"),
        (["--", "--config.seed=3"], "--config.seed after -- is set by the sweep itself"),
        (["--jobs=0"], "--jobs is 0; at least one run has to go on at a time"),
    ],
)
def test_a_sweep_refuses_what_would_win_in_silence(
    flags: list[str], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    base = ["sweep", "--config=configs/digits.py", f"--workdir={tmp_path / 'sweep'}", *flags]
    monkeypatch.setattr(sys, "argv", base)
    with pytest.raises(SystemExit) as raised:
        sweep.main()
    assert message in str(raised.value)
    assert "\n" not in str(raised.value)


def test_a_sweep_into_a_file_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setattr(sys, "argv", ["sweep", "--config=configs/digits.py", f"--workdir={tmp_path / 'file'}"])
    with pytest.raises(SystemExit, match="is no folder for runs"):
        sweep.main()
