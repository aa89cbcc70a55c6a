"""One rate-limit check on a shared store: ours, the peers, and the script sent by the bare driver.

python -m benchmarks.bench_rate_limiter [--rounds 7] [--seconds 0.2] [--quick] [--write]
"""

import sys

from .contest import Goal
from .goals import p99_below, times_the_best, times_the_latency
from .harness import Benchmark, Table, main
from .limiters import (
    BARE,
    BARE_DEFAULT,
    DEFAULT_POOL,
    HOT,
    IDENTITIES,
    LEASED,
    MAX_CONNECTIONS,
    NEVER_REFUSES,
    OURS,
    PEERS,
    allowing,
    observatory,
    refusing,
)

_NO_PEERS = (BARE, BARE_DEFAULT, LEASED)


def _floor(*in_flight: int) -> tuple[Goal, ...]:
    return tuple(
        times_the_best(OURS, at_least, number, besides=_NO_PEERS)
        for number, at_least in ((64, 6), (512, 8))
        if number in in_flight
    )


BENCHMARK = Benchmark(
    name="bench_rate_limiter",
    title="Rate limiter: one check",
    about=f"""\
One `check` of cost 1, over TCP on loopback. What uses redis-py has its `BlockingConnectionPool` of {MAX_CONNECTIONS}
connections, unless it says *default pool*, which raises when more than 100 calls are in flight. Ours has one connection.
What each contender does, and why it was chosen: README.md. The limit is {NEVER_REFUSES.amount:,} per minute and key unless a
table says otherwise: it never refuses here, and every answer is looked at. *Best peer*: whichever limiter of the table, with
either pool, was fastest in that round; a bare EVALSHA is no limiter.""",
    parts=(
        Table(
            title="Distinct keys, allowed",
            about=f"{len(IDENTITIES):,} keys in turn.",
            contenders=tuple(allowing(name, limiter) for name, limiter in (*PEERS, *DEFAULT_POOL)),
            reference=BARE,
            goals=(times_the_latency(OURS, BARE_DEFAULT, 1.1, 1), *_floor(64, 512)),
        ),
        Table(
            title="One hot key, allowed",
            about="""\
Everybody asks for the same key. *leases*: `Limit(..., leases=True)`, tokens are borrowed in batches and spent without asking;
no peer has the like.""",
            contenders=(
                *(allowing(name, limiter, HOT) for name, limiter in (*PEERS, *DEFAULT_POOL)),
                allowing(LEASED, observatory(leases=True), HOT, at_least=4),
            ),
            reference=BARE,
            in_flight=(64, 512, 1000),
            goals=(
                *_floor(64, 512),
                *(times_the_best(LEASED, 50, number, besides=(BARE, BARE_DEFAULT, OURS)) for number in (64, 512)),
                p99_below(OURS, 5, 1000),
                p99_below(LEASED, 5, 1000),
            ),
        ),
        Table(
            title="Distinct keys, refused",
            about="""\
Every bucket is empty before the timing starts, so every check is refused. Ours remembers a refusal for as long as it must hold,
and answers without asking: see *server CPU*.""",
            contenders=tuple(refusing(name, limiter) for name, limiter in PEERS),
            reference=BARE,
            in_flight=(64,),
        ),
    ),
    libraries=("observatory-fleet", "redis", "hiredis", "limits", "throttled-py", "pyrate-limiter"),
)

if __name__ == "__main__":
    sys.exit(main(BENCHMARK))
