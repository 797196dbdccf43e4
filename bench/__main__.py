"""``python -m bench``: asks all questions, prints the table, writes the JSON."""

from __future__ import annotations

import argparse
import sys
import time
from dataclasses import replace

from bench import report
from bench.contestants import LIMITS
from bench.harness import BenchError, Run, Settings, ask, choose_cores, prepare, raise_file_limit
from bench.questions import QUESTIONS

QUICK = Settings(quick=True, repeats=2, warm=0.25, measure=0.7, retries=3)
FILES = 10_200  # open files that the idle connections need


def main(words: list[str] | None = None) -> int:
    names = [question.name for question in QUESTIONS]
    parser = argparse.ArgumentParser(prog="python -m bench", description="Speed and memory, as ratios to peers.")
    parser.add_argument("--only", metavar="NAME", action="append", choices=names, help=f"one of {', '.join(names)}")
    parser.add_argument(
        "--quick", action="store_true", help="fewer and shorter runs, without the peers for information"
    )
    parser.add_argument("--repeats", type=int, metavar="N", help="runs per contestant")
    parser.add_argument(
        "--poll", action="store_true", help="clients never sleep, so waking them costs no server anything"
    )
    parser.add_argument("--no-save", action="store_true", help="print only, write no JSON")
    given = parser.parse_args(words)
    settings = QUICK if given.quick else Settings()
    if given.repeats:
        settings = replace(settings, repeats=max(1, given.repeats))
    settings = replace(settings, poll=given.poll)
    asked = [question for question in QUESTIONS if not given.only or question.name in given.only]
    try:
        prepare({question.program for question in asked})
        cores = choose_cores()
        if raise_file_limit() < FILES and any(question.name == "idle" for question in asked):
            raise BenchError(f"the limit of open files is too low for the question 'idle': try `ulimit -n {FILES}`")
        began = time.monotonic()
        results = [ask(question, settings, cores, progress) for question in asked]
    except BenchError as error:
        print(f"bench: {error}", file=sys.stderr)
        return 1
    print(report.table(results))
    print(f"\n{time.monotonic() - began:.0f} s; commit {report.commit()}; ratios are medians of paired runs")
    if not given.no_save:
        path = report.save(results, settings, cores, LIMITS)
        print(f"all runs: bench/results/{path.name}")
    return 1 if any(run.faults for result in results for run in result.runs if run.who == "ours") else 0


def progress(question: str, run: Run) -> None:
    seen = run.figures
    mark = " disturbed" if run.disturbance > 1 else ""
    print(
        f"{question:12} {run.round} {run.who:10} {seen.get('rate', 0):12,.0f}/s {seen.get('cpu_us', 0):7.2f} µs"
        f"  server {seen['server_share']:.2f} generator {seen['generator_share']:.2f}"
        f" foreign {seen['foreign']:.2f} {seen['foreign_generator']:.2f}{mark}",
        *run.faults,
        file=sys.stderr,
        flush=True,
    )


if __name__ == "__main__":
    sys.exit(main())
