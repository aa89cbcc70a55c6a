"""Small wrongs in the Lua files, one at a time: does a test notice? A tool; its runs are minutes, so `make test` leaves it out.

    python -m tests.mutants lua/rate_limiter                       every mutant of the folder
    python -m tests.mutants lua/rate_limiter --sample 200 --seed 7 some, spread over the files by their size
    python -m tests.mutants lua/rate_limiter --again REPORT        those that survived the run that wrote REPORT

Mutants are made of the bodies, not of headers and comments: a comparison moved by one or turned round, another arithmetic
operator, and/or, min/max, floor/ceil; a number, but no index, one higher and one lower (from a thousand on: doubled, halved);
a condition negated; a line that is a call, an assignment, `return` or `break` left out. Each is written into a copy of the
checkout, where the tests that run the scripts by hand come first, with Hypothesis made deterministic. A failure, an error or a
hang kills it.
"""

import argparse
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parents[1]
LIMITER = "tests/features/rate_limiter"
TESTS = (
    f"{LIMITER}/test_rules_of_state.py",
    f"{LIMITER}/test_rules_of_holds.py",
    f"{LIMITER}/test_rules_of_the_line.py",
    f"{LIMITER}/test_scripts.py",
    *(
        f"{LIMITER}/test_acquire.py::{name}"
        for name in (
            "test_ahead_is_earmarked_for_who_is_ahead",
            "test_silent_owner_is_passed_after_a_second",
            "test_lost_line_begins_a_new_epoch",
            "test_impatient_ticket_is_told_its_wait",
        )
    ),
    f"{LIMITER}/test_leases.py::test_no_interval_ever_has_more_than_burst_and_rate",
    f"{LIMITER}/test_leases.py::test_the_mark_binds_who_does_not_borrow",
    f"{LIMITER}/test_leases.py::test_what_is_given_back_late_has_grown_back",
    f"{LIMITER}/test_failover.py",
    f"{LIMITER}/test_reserve.py",
    f"{LIMITER}/test_acquire.py",
)
"""The quickest killers first."""
OTHERS = {
    "breaker": ("tests/features/test_breaker_scripts.py", "tests/features/test_breaker.py", "tests/features/test_pauses.py"),
    "retry": ("tests/features/test_retry_budget.py",),
}
"""Of other folders than the limiter's."""
SLOW = "gains_and_loses or automatic_lending or thousand_waiters or embedded or idle_line or whole_client or without_the_fence"
"""Seconds each, and nothing that the others would not see."""
PROFILE = """
from hypothesis import Phase, settings
settings.register_profile("mutants", derandomize=True, database=None, deadline=None, phases=[Phase.explicit, Phase.generate])
settings.load_profile("mutants")
"""
HANGS_AFTER = 90.0

_SWAPS = """< <= >=; <= < >; > >= <=; >= > <; == ~=; ~= ==; + -; - +; * /; / *; % *; and or; or and; math.min math.max;
math.max math.min; math.floor math.ceil; math.ceil math.floor"""
SWAPS = {before: tuple(after) for before, *after in (one.split() for one in _SWAPS.split(";"))}
_TOKEN = re.compile(r"(?<= )(?:[<>]=?|[=~]=|[-+*/%]|and|or)(?= )|math\.(?:min|max|floor|ceil)\b|(?<![\w.\[])\d+(?![\w.\]])")
_CONDITION = re.compile(r"^\s*(?:else)?if (.+) then$")
_STATEMENT = re.compile(r"^\s+(?:return\b|break$|[\w.]+\(.*\)$|[\w.\[\]# +,]+ = )")
_STRING = re.compile(r"'[^']*'")


class Mutant(NamedTuple):
    """One replacement in one file."""

    file: str
    line: int
    column: int
    before: str
    after: str

    def __str__(self) -> str:
        return f"{self.file}:{self.line}:{self.column} `{self.before}` -> `{self.after}`"

    def applied(self, text: str) -> str:
        lines = text.splitlines()
        at, start = self.line - 1, self.column - 1
        assert lines[at][start:].startswith(self.before), self
        lines[at] = lines[at][:start] + self.after + lines[at][start + len(self.before) :]
        return "\n".join(lines) + "\n"


def numbers(value: int) -> tuple[str, ...]:
    if value >= 1000:
        return str(value * 2), str(value // 2)
    return (str(value + 1), str(value - 1)) if value else ("1",)


def mutants_of(path: Path) -> list[Mutant]:
    """In the order of the file."""
    lines = path.read_text(encoding="utf-8").splitlines()
    found = []
    for number, line in enumerate(lines[lines.index("]]") + 1 :], lines.index("]]") + 2):
        code = _STRING.sub(lambda match: "'" + "_" * (len(match[0]) - 2) + "'", line).split("--")[0].rstrip()
        for token in _TOKEN.finditer(code):
            swaps = numbers(int(token[0])) if token[0].isdigit() else SWAPS[token[0]]
            found += [Mutant(path.name, number, token.start() + 1, token[0], swap) for swap in swaps]
        condition = _CONDITION.match(code)
        if condition:
            start, end = condition.span(1)
            found.append(Mutant(path.name, number, start + 1, line[start:end], f"not ({line[start:end]})"))
        whole = all(code.count(left) == code.count(right) for left, right in ("()", "{}"))
        if (
            _STATEMENT.match(code)
            and whole
            and not code.lstrip().startswith("local ")
            and not code.endswith(("(", ",", "=", "and", "or"))
        ):
            start = len(line) - len(line.lstrip())
            found.append(Mutant(path.name, number, start + 1, line[start:], ""))
    return found


def chosen(files: list[Path], sample: int, seed: int) -> list[Mutant]:
    """Of each file a share by the number of its mutants."""
    of = {path: mutants_of(path) for path in files}
    total = sum(map(len, of.values()))
    if not 0 < sample < total:
        return [one for found in of.values() for one in found]
    dice = random.Random(seed)
    return [one for found in of.values() for one in sorted(dice.sample(found, round(len(found) * sample / total)))]


def killer(copy: Path, tests: tuple[str, ...]) -> str:
    """The test that fails in the copy, "hang", or "" when all pass."""
    options = ["-x", "-q", "-n", "0", "-p", "no:cacheprovider", "-p", "mutants_profile", "--timeout", "30", "--tb", "no"]
    options += ["-k", f"not redis and not ({SLOW})", "--basetemp", str(copy / "t")]
    run = subprocess.Popen(
        [sys.executable, "-m", "pytest", *options, *tests],
        cwd=copy,
        env={**os.environ, "PYTHONPATH": str(copy)},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )
    try:
        said, _ = run.communicate(timeout=HANGS_AFTER)
    except subprocess.TimeoutExpired:
        os.killpg(run.pid, signal.SIGKILL)
        run.communicate()
        return "hang"
    failed = re.search(r"^(?:FAILED|ERROR) \S*?([\w.]+::\S+|\w+\.py)", said, re.MULTILINE)
    if run.returncode and not failed:
        raise SystemExit(said)
    return failed[1] if failed else ""


def main() -> None:
    """Print every verdict as it falls, and the sums."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--sample", type=int, default=0)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--report", type=Path)
    parser.add_argument("--again", type=Path)
    given = parser.parse_args()
    tests = OTHERS.get(given.folder.name, TESTS)
    picked = chosen(sorted(given.folder.glob("*.lua")), given.sample, given.seed)
    if given.again:
        survived = {line.removeprefix("survived ") for line in given.again.read_text().splitlines()}
        picked = [one for one in picked if str(one) in survived]
    verdicts: Counter[tuple[str, str]] = Counter()
    report = given.report.open("w", buffering=1) if given.report else None
    with tempfile.TemporaryDirectory(prefix="m") as folder:
        copy = Path(folder)
        for name in ("lua", "observatory", "tests"):
            shutil.copytree(ROOT / name, copy / name, ignore=shutil.ignore_patterns("__pycache__"))
        shutil.copy(ROOT / "pyproject.toml", copy)
        (copy / "mutants_profile.py").write_text(PROFILE)
        assert not killer(copy, tests), "the tests fail before anything is changed"
        for number, mutant in enumerate(picked, 1):
            original = given.folder / mutant.file
            target = copy / "lua" / given.folder.name / mutant.file
            target.write_text(mutant.applied(original.read_text(encoding="utf-8")))
            began = time.monotonic()
            by = killer(copy, tests)
            shutil.copy(original, target)
            verdict = "killed" if by else "survived"
            verdicts[mutant.file, verdict] += 1
            print(f"{number}/{len(picked)} {verdict} {mutant} {by} {time.monotonic() - began:.1f} s", flush=True)
            if report:
                report.write(f"{verdict} {mutant}\n")
    for file in sorted({file for file, _ in verdicts}):
        killed, all_of = verdicts[file, "killed"], verdicts[file, "killed"] + verdicts[file, "survived"]
        print(f"{file}: {killed} of {all_of} killed ({killed / all_of:.1%})")


if __name__ == "__main__":
    main()
