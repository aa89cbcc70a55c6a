"""`observatory replay`: the main job, on traffic of our own and on a production trace, with processes killed in its midst."""

import json
import os
import signal
import threading
import time
from pathlib import Path

import pytest

from observatory import InvalidArgument
from observatory.cli.trace import made_up, read
from tests.cli.test_up import children_of, urls
from tests.servers import ROOT, Server, command, environment, process

AZURE = ROOT.parent / "shared" / "data" / "azure_llm_2023_conv.csv"
HEADER = "TIMESTAMP,ContextTokens,GeneratedTokens\n"


@pytest.fixture
def trace(tmp_path: Path) -> Path:
    """Four seconds of made-up traffic, as NDJSON."""
    path = tmp_path / "trace.ndjson"
    calls = made_up(4, 150, seed=3).calls
    lines = [
        json.dumps(
            {"TIMESTAMP": 1_700_000_000 + one.at, "ContextTokens": one.input_tokens, "GeneratedTokens": one.output_tokens}
        )
        for one in calls
    ]
    path.write_text("\n".join(lines) + "\n")
    return path


def holds(report: dict[str, object]) -> bool:
    checks = report["checks"]
    assert isinstance(checks, list)
    return all(check["holds"] for check in checks)


def test_library_processes_share_one_limit(trace: Path, server: Server, namespace: str) -> None:
    """Four processes: admitted within the bound, and close to it; the sums are equal; the table says so."""
    env = environment(OBSERVATORY_REDIS_URL=server.url, OBSERVATORY_NAMESPACE=namespace)
    limit = ["--tokens-per-minute", "600000", "--burst", "50000", "--processes", "4", "--speed", "4"]
    done = command("replay", str(trace), *limit, "--json", env=env)
    assert done.returncode == 0, done.stdout + done.stderr
    report = json.loads(done.stdout)
    assert holds(report)
    bound = report["checks"][0]
    assert bound["fleet"] > 45_000, "the limit was never reached: the test proves nothing"
    assert report["ledger"]["refused"] > 50
    shown = command("replay", str(trace), *limit, env=env)
    assert shown.returncode == 0
    assert "BROKEN" not in shown.stdout
    assert shown.stdout.count(" ok") == 6


def test_a_broken_sum_is_told(trace: Path, server: Server, namespace: str) -> None:
    """A fleet that loses a count is not called whole: exit 1, and the row says BROKEN."""
    import redis

    env = environment(OBSERVATORY_REDIS_URL=server.url, OBSERVATORY_NAMESPACE=namespace)
    stop = threading.Event()

    def thief() -> None:
        with redis.Redis.from_url(server.url) as client:
            while not stop.wait(0.05):
                for key in client.scan_iter(match=f"obs1:{namespace}:metrics:*:window:*observatory_requests_total"):
                    for field in client.hkeys(key):
                        if field != b"#":
                            client.hincrby(key, field, -1)

    stealing = threading.Thread(target=thief)
    stealing.start()
    try:
        impatient = "import observatory.cli.replay as r; r.SETTLE_FOR = 1.0\nfrom observatory.cli.main import app; app()"
        limit = ["--tokens-per-minute", "600000", "--speed", "8", "--processes", "2"]
        with process(["-c", impatient, "replay", str(trace), *limit], env) as one:
            out, said = one.communicate(timeout=60)
    finally:
        stop.set()
        stealing.join()
    assert one.returncode == 1, said
    assert "BROKEN" in out


def test_services_and_workers_killed_in_the_midst(trace: Path, tmp_path: Path) -> None:
    """One worker and one service die while four processes ask over HTTP: nothing lost, doubled, or above the limit."""
    up = ["-m", "observatory", "up", "--services", "2", "--workers", "2", "--port", "0", "--data-dir", str(tmp_path / "state")]
    with process(up, environment()) as fleet:
        both = urls(fleet)
        children = sorted(children_of(fleet.pid))

        def kill() -> None:
            time.sleep(2.5)
            for number in (0, len(children) - 1):
                os.kill(children[number], signal.SIGKILL)

        killer = threading.Thread(target=kill)
        killer.start()
        services = [word for url in both for word in ("--service", url)]
        limit = ["--tokens-per-minute", "600000", "--burst", "50000", "--processes", "4"]
        done = command("replay", str(trace), *limit, *services, "--json", env=environment(), timeout=100)
        killer.join()
        assert done.returncode == 0, done.stdout + done.stderr
        report = json.loads(done.stdout)
        assert holds(report)
        assert report["ledger"]["admitted"] > 50
        fleet.send_signal(signal.SIGINT)
        assert fleet.wait(30) == 0


def test_the_production_trace(server: Server, namespace: str) -> None:
    """An hour of Azure's conversations in half a minute over eight processes: every sum holds."""
    if not AZURE.exists():
        pytest.skip("the Azure trace is not beside the checkout (../shared/data)")
    env = environment(OBSERVATORY_REDIS_URL=server.url, OBSERVATORY_NAMESPACE=namespace)
    limit = ["--tokens-per-minute", "20000000", "--burst", "500000", "--processes", "8", "--speed", "240"]
    done = command("replay", str(AZURE), *limit, "--json", env=env, timeout=110)
    assert done.returncode == 0, done.stdout + done.stderr
    report = json.loads(done.stdout)
    assert holds(report)
    assert report["ledger"]["calls"] == 19_366
    assert report["checks"][0]["fleet"] > report["checks"][0]["expected"] * 0.6, "the limit was hardly reached"


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ("yesterday,1,2", "line 3: Invalid isoformat"),
        ("2023-11-16 18:15:46.6805900,1", "line 3: 2 fields instead of 3"),
        ("2023-11-16 18:15:46,one,2", "line 3: invalid literal"),
        ("2023-11-16 18:15:46,-1,2", "line 3: '-1' is not a number of tokens"),
        ("2023-11-16 18:15:46,99999999999,2", "line 3: '99999999999' is not a number of tokens"),
    ],
)
def test_malformed_line_is_named_or_counted(tmp_path: Path, line: str, says: str) -> None:
    """With its number; --skip-bad goes on and counts."""
    path = tmp_path / "trace.csv"
    path.write_text(f"{HEADER}2023-11-16 18:15:46.6805900,374,44\n{line}\n2023-11-16 18:15:50.9951690,396,109\n")
    with pytest.raises(InvalidArgument, match=says):
        read(path)
    trace = read(path, skip_bad=True)
    assert (len(trace.calls), trace.skipped, trace.tokens) == (2, 1, 923)
    assert trace.calls[1].at == pytest.approx(4.314579)


@pytest.mark.parametrize("text", ["", "A,B,C\n1,2,3\n", HEADER, "\x00\xff"])
def test_what_is_no_trace_is_refused(tmp_path: Path, text: str) -> None:
    path = tmp_path / "trace.csv"
    path.write_bytes(text.encode("latin-1"))
    with pytest.raises(InvalidArgument, match=r"trace\.csv"):
        read(path)


def test_demo_ends_with_the_table() -> None:
    """Two services, two workers, four clients, and every row ok; nothing of it stays."""
    done = command("demo", "--seconds", "3", env=environment(), timeout=100)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "admitted tokens within burst + rate x elapsed" in done.stdout
    assert "BROKEN" not in done.stdout
