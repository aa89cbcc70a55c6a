"""Benchmarks: ours, the peers and the bare driver, measured side by side in one run. Never timed tests."""
