"""The bench's arithmetic. Its speed is no business of the tests."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent.parent))

from bench import report
from bench.harness import Contestant, Question, Result, Row, Run, figures, paired_ratios, shares
from bench.questions import QUESTIONS
from bench.report import conditions, number, summary, table

RAW = {
    "mode": "closed",
    "seconds": 2.0,
    "deliveries": 1000,
    "rate": 500.0,
    "own_share": 0.5,
    "spun_share": 0.0,
    "polls": 0,
    "server_cpu_s": 1.5,
    "core_busy_s": [1.9, 1.1],
    "first_failure": "",
}


def no_command(port: int) -> list[str]:
    return []


def contestant(name: str) -> Contestant:
    return Contestant(name, no_command)


def result(rows: tuple[Row, ...], **runs: list[float]) -> Result:
    question = Question("q", "a title", contestant("ours"), lambda server, settings: {}, rows, contestant("node"))
    return Result(question, [Run(who, i, {"x": x}) for who, values in runs.items() for i, x in enumerate(values)])


def test_a_ratio_is_taken_to_the_baseline_before_and_after() -> None:
    assert paired_ratios([30.0, 20.0], [10.0, 20.0, 20.0]) == [2.0, 1.0]


def test_foreign_load_is_what_the_server_did_not_use_itself() -> None:
    seen = figures(RAW)
    assert seen["foreign"] == pytest.approx(0.2)
    assert seen["foreign_generator"] == pytest.approx(0.05)
    assert seen["cpu_us"] == pytest.approx(1500)


def test_polling_in_vain_does_not_count_as_work_of_the_generator() -> None:
    seen = figures({**RAW, "own_share": 1.0, "spun_share": 0.6, "polls": 1})
    assert seen["generator_share"] == pytest.approx(0.4)


def test_a_run_with_much_foreign_load_is_disturbed() -> None:
    assert Run("ours", 0, {"foreign": 0.13}).disturbance > 1
    assert Run("ours", 0, {"foreign": 0.11, "foreign_generator": 0.11}).disturbance < 1


def test_a_goal_is_a_ratio_or_a_value_a_floor_or_a_ceiling() -> None:
    assert Row("x", "", "", goal=9.0).reached(1.0, 9.5) is True
    assert Row("x", "", "", goal=0.8, at_least=False).reached(1.0, 0.9) is False
    assert Row("x", "", "ms", goal=2.0, ratio=False, at_least=False).reached(1.7, 5.0) is True
    assert Row("x", "", "").reached(1.0, 2.0) is None


def test_the_median_ratio_decides() -> None:
    runs = result((Row("x", "rate", "1/s", goal=9.0),), node=[10.0, 10.0, 10.0, 10.0], ours=[95.0, 20.0, 93.0])
    seen = summary(runs, runs.question.rows[0])
    assert seen["ratio"] == pytest.approx(9.3)
    assert seen["reached"] is True
    assert "2.00–9.50" in table([runs])


def test_a_row_with_faults_is_never_reached() -> None:
    runs = result((Row("x", "rate", "1/s", goal=9.0),), node=[10.0, 10.0], ours=[95.0])
    runs.runs[-1].figures["unstamped"] = 1
    assert summary(runs, runs.question.rows[0])["reached"] is False
    assert "FAULTS: ours: unstamped 1" in conditions(runs)


def test_disturbed_runs_decide_nothing() -> None:
    runs = result((Row("x", "rate", "1/s", goal=9.0),), node=[10.0, 10.0, 10.0], ours=[95.0, 95.0])
    assert summary(runs, runs.question.rows[0])["reached"] is True
    for run in runs.runs:
        run.figures["foreign"] = 0.5
    assert summary(runs, runs.question.rows[0])["reached"] is None
    assert "DISTURBED: 5 of 5 runs" in conditions(runs)


def test_a_saturated_generator_is_named() -> None:
    runs = result((), ours=[1.0])
    runs.runs[0].figures["generator_share"] = 0.98
    assert "GENERATOR MAY BE THE LIMIT" in conditions(runs)


def test_a_ratio_may_be_to_another_contestant_of_the_same_round() -> None:
    row = Row("x", "rate", "1/s", goal=1.3, against="other")
    runs = result((row,), node=[1.0, 1.0, 1.0], ours=[30.0, 60.0], other=[20.0, 30.0])
    assert summary(runs, row)["ratios"] == [1.5, 2.0]
    assert summary(runs, row)["peer_name"] == "other"


def test_a_row_may_be_of_another_contestant_than_ours() -> None:
    row = Row("x", "cost", "µs", goal=0.5, at_least=False)
    rows = (row, replace(row, who="other"))
    runs = result(rows, node=[10.0, 10.0, 10.0], ours=[6.0, 6.0], other=[4.0, 5.0])
    runs.question = replace(runs.question, others=(contestant("other"), contestant("third")))
    assert [summary(runs, row)["ours"] for row in rows] == [6.0, 4.5]
    assert [summary(runs, row)["reached"] for row in rows] == [False, True]
    runs.runs.append(Run("third", 0, {"x": 7.0}))
    assert summary(runs, row)["others"] == {"third": 7.0}  # `other` has a row of its own
    assert runs.question.contestants(quick=True) == [contestant("ours"), contestant("other")]


def test_what_others_used_of_a_core_is_what_neither_server_nor_load_did() -> None:
    seen = shares(2.0, served=0.5, loaded=1.0, busy=(0.9, 0.8))
    assert seen["server_share"] == pytest.approx(0.25)
    assert seen["generator_share"] == pytest.approx(0.5)
    assert seen["foreign"] == pytest.approx(0.2)
    assert seen["foreign_generator"] == 0  # /proc/stat counts in steps, and so may say less than they did


def test_numbers_have_three_digits() -> None:
    assert [number(x) for x in (1234567.0, 0.8412, 12.25, None)] == ["1,234,567", "0.841", "12.2", ""]


def test_questions_have_names_of_their_own() -> None:
    assert len({question.name for question in QUESTIONS}) == len(QUESTIONS)


def test_a_second_run_of_one_commit_does_not_take_the_place_of_the_first(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(report, "RESULTS", tmp_path)
    for name in ("run.json", "run-2.json", "run-3.json"):
        assert report.unused("run") == tmp_path / name
        (tmp_path / name).touch()
