"""All of them, one after the other, with the same options: python -m benchmarks [--quick] [--write]."""

import sys

from . import (
    bench_cache,
    bench_cache_near,
    bench_growth,
    bench_guarded,
    bench_metrics,
    bench_rate_limiter,
    bench_reservations,
    bench_resilience,
    bench_transport,
    bench_worker,
)
from .harness import main

if __name__ == "__main__":
    broken = [
        main(bench_rate_limiter.BENCHMARK),
        main(bench_reservations.BENCHMARK),
        bench_growth.run(),
        main(bench_metrics.BENCHMARK),
        main(bench_worker.BENCHMARK),
        main(bench_cache.BENCHMARK),
        main(bench_cache_near.BENCHMARK),
        main(bench_resilience.BENCHMARK),
        main(bench_transport.BENCHMARK),
        main(bench_guarded.BENCHMARK),
    ]
    sys.exit(max(broken))
