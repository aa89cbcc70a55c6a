"""`obs.metrics`: recording, flushing, asking."""

import asyncio
import contextlib
from collections.abc import Awaitable, Callable, Mapping, Sequence
from decimal import Decimal
from typing import Any, Literal, Protocol

from ... import names
from ...errors import StoreError, StoreUnavailable
from ...keys import Key
from ...logs import INTERNAL
from ...names import Definition, Metric
from ...store.outbox import Outbox, Verdict
from ...store.script import lua
from ...store.store import Bulk, Store
from ...types import Duration, Moment
from . import openmetrics, query, rollup
from .exemplars import Exemplars
from .export import Export, Family
from .handles import Counter, Gauge, Histogram
from .openmetrics import Form
from .query import Result
from .recorder import Recorder
from .wire import MAX_FIELDS, Batch, descriptions, gauge_keep_ms, pieces, window_of

RENEW_GAUGES_US = 3_000_000
"""Gauges that stand where they stood are renewed this often, by telling one of them: a killed process's go soon."""
REPEAT_GAUGES_US = 30_000_000
"""All of them are told this often: a failover may have lost some."""


@lua("metrics/flush")
def _flush(
    store: Bulk,
    *,
    watermark: Key,
    names: Key,
    flushes: Key,
    sizes: Key,
    open: Key,  # noqa: A002 (the script's word)
    gauge_writers: Key,
    gauges: Key,
    targets: Sequence[Key],
    now_us: int,
    writer: str,
    batch: int,
    max_series: int,
    gauge_keep_ms: int,
    gauge_count: int,
    deltas: Sequence[str | int | float],
) -> Awaitable[list[Any]]: ...


class _Counts(Protocol):
    def __call__(self, metric: Metric | str, value: float | Decimal = 1, labels: Mapping[str, str] | None = None) -> None: ...


class _Measures(Protocol):
    def __call__(self, metric: Metric | str, value: float, labels: Mapping[str, str] | None = None) -> None: ...


class Metrics:
    """Recording is sync and local; it never blocks and never raises into the caller (a wrong value is counted and logged once).

    What the fleet knows is at most `metrics.flush_every` behind; that much is lost by a SIGKILL, nothing by an orderly close.
    """

    increment_counter: "_Counts"
    record_histogram: "_Measures"
    set_gauge: "_Measures"

    def __init__(
        self, store: Callable[[], Store], *, max_series: int, flush_every: float, partition: Callable[[], int]
    ) -> None:
        self._store = store
        self._partition = partition
        self._recorder = recorder = Recorder(max_series)
        # The recorder's own: another call on the way would be a tenth of what recording takes.
        self.increment_counter = recorder.increment_counter
        self.record_histogram, self.set_gauge = recorder.record_histogram, recorder.set_gauge
        self._max_series = max_series
        self._gauge_keep_ms = gauge_keep_ms(flush_every)
        self._described: set[str] = set()
        self._outbox: Outbox[Batch] = Outbox(self._send)
        self._exemplars = Exemplars(store, partition)
        self._export = Export(store, self._recorder, self._exemplars.fleet)
        self._lost_reported = 0
        self._complained: set[str] = set()
        self._gauges_told: dict[str, float] = {}
        self._gauges_renewed_at = self._gauges_repeated_at = 0
        self._commit: asyncio.Future[None] | None = None
        self._next_commit: asyncio.Future[None] | None = None

    # recording, besides
    def counter(self, name: Metric | str, *, unit: str = "", description: str = "") -> Counter:
        self._recorder.describe(name, Definition("counter", unit, description))
        return Counter(self._recorder, str(name))

    def gauge(self, name: Metric | str, *, unit: str = "", description: str = "") -> Gauge:
        self._recorder.describe(name, Definition("gauge", unit, description))
        return Gauge(self._recorder, str(name))

    def histogram(self, name: Metric | str, *, unit: str = "", description: str = "") -> Histogram:
        self._recorder.describe(name, Definition("histogram", unit, description))
        return Histogram(self._recorder, str(name))

    def exemplify(self, metric: Metric | str, value: float, labels: Mapping[str, str] | None = None) -> None:
        """The current span is an example of a value that was recorded in a histogram. `record_request` does so.

        Nothing where there is none, or its trace is not sampled. Exporters tell it where the format allows.
        """
        self._exemplars.keep(metric, value, labels or {})

    # flushing
    async def flush(self) -> None:
        """Acknowledged by Redis when it returns; StoreUnavailable otherwise (nothing is lost)."""
        if not self._store().joined:
            raise StoreUnavailable("the store has not been reached yet; what was recorded waits")
        await self._deliver()

    async def _deliver(self) -> None:
        # What waits for the store is frozen only once it answers: until then it is bounded by the recorder.
        await self._outbox.deliver()
        self._freeze()
        await self._outbox.deliver()
        self._report_lost()
        with contextlib.suppress(StoreError):
            await self._exemplars.deliver()

    def _report_lost(self) -> None:
        if self._outbox.lost > self._lost_reported:
            lost, self._lost_reported = self._outbox.lost - self._lost_reported, self._outbox.lost
            self.increment_counter(names.BATCHES_LOST, lost, {"feature": "metrics"})

    async def commit(self) -> None:
        """As `flush`, for many callers at once: those who come while one flush is under way share the next."""
        waiting = self._next_commit
        if waiting is None or waiting.get_loop() is not asyncio.get_running_loop():
            if self._commit is not None and self._commit.get_loop() is not asyncio.get_running_loop():
                self._commit = None
            waiting = self._next_commit = asyncio.ensure_future(self._commit_behind(self._commit))
        # A caller that is cancelled must not take the flush of the others with it.
        await asyncio.shield(waiting)

    async def _commit_behind(self, running: "asyncio.Future[None] | None") -> None:
        if running is not None:
            await asyncio.wait({running})
        self._commit, self._next_commit = self._next_commit, None
        await self.flush()

    async def retire(self) -> None:
        """As `flush`, and this process's gauges stand nowhere any more."""
        await self.flush()
        self._gauges_told = {}
        self._outbox.put(Batch(0, (), ()))
        await self._outbox.deliver()

    async def flush_regularly(self) -> None:
        """What the background does: as `flush`, and no error before the store was ever reached."""
        await self._deliver()
        if self._export.is_kept:
            await self._export.look()

    def _freeze(self) -> None:
        now_us = self._store().server_us()
        if now_us is None:
            return
        windows = self._recorder.windows(now_us)
        self._export.took(windows)
        # What a gauge is goes before its first value; its history would say so ten seconds later.
        gauges = self._recorder.gauges()
        new = {metric: definition for metric, definition, _, _ in gauges if metric not in self._described}
        self._described.update(new)
        for piece in descriptions(new):
            self._outbox.put(Batch(window_of(now_us), piece, None))
        for at_us, groups in windows:
            for piece in pieces(groups):
                self._outbox.put(Batch(window_of(at_us), piece, None))
        told = self._gauges_to_tell({f"{metric}|{text}": value for metric, _, text, value in gauges}, now_us)
        for begins in range(0, len(told), MAX_FIELDS):
            self._outbox.put(Batch(window_of(now_us), (), tuple(told[begins : begins + MAX_FIELDS])))

    def _gauges_to_tell(self, stands: dict[str, float], now_us: int) -> list[tuple[str, float]]:
        """Those that do not stand where they were last told to; all of them now and then."""
        known, self._gauges_told = self._gauges_told, stands
        # Who was silent for long may find that they have gone.
        silent = now_us - self._gauges_renewed_at > self._gauge_keep_ms * 500
        if silent or now_us - self._gauges_repeated_at >= REPEAT_GAUGES_US:
            known, self._gauges_repeated_at = {}, now_us
        changed = [pair for pair in stands.items() if known.get(pair[0]) != pair[1]]
        if not changed and stands and now_us - self._gauges_renewed_at >= RENEW_GAUGES_US:
            changed = [next(iter(stands.items()))]
        if changed:
            self._gauges_renewed_at = now_us
        return changed

    async def _send(self, writer: str, number: int, batch: Batch) -> Verdict:
        store = self._store()
        keys, partition = store.keys, self._partition()
        what, watermark, *not_as_asked = await _flush(
            store.bulk(),
            watermark=keys.metric_writer(partition, writer),
            names=keys.metric_names(partition),
            flushes=keys.metric_flushes(partition),
            sizes=keys.metric_sizes(partition),
            open=keys.open_windows(partition),
            gauge_writers=keys.gauge_writers(partition),
            gauges=keys.gauges(partition, writer),
            targets=batch.targets(keys, partition),
            now_us=0,
            writer=writer,
            batch=number,
            max_series=self._max_series,
            gauge_keep_ms=self._gauge_keep_ms,
            gauge_count=-1 if batch.gauges is None else len(batch.gauges),
            deltas=batch.deltas(),
        )
        self.count_unusual("metrics", *not_as_asked)
        return Verdict(what, watermark)

    def count_unusual(self, feature: str, refused: int, misplaced: int, *folded: bytes | int) -> None:
        """Tell of additions that the store refused, took without a window, or folded (by metric), in metrics of their own."""
        if refused:
            self._count_refused(refused, feature)
        if misplaced:
            self.increment_counter(names.ADDITIONS_LATE, misplaced, {"feature": feature})
        for metric, additions in zip(folded[::2], folded[1::2], strict=True):
            name = metric.decode() if isinstance(metric, bytes) else str(metric)
            self.increment_counter(names.SERIES_FOLDED, int(additions), {"metric": name})

    def _count_refused(self, additions: int, feature: str) -> None:
        self.increment_counter(names.ADDITIONS_REFUSED, additions, {"feature": feature})
        if feature not in self._complained:
            self._complained.add(feature)
            INTERNAL.error(
                "%s: the store refused %d additions (a sum beyond 2^63, a key of another type, or one name for a counter and a "
                "histogram); from now on only %s tells of them",
                feature,
                additions,
                names.ADDITIONS_REFUSED,
            )

    def forget(self) -> None:
        """A forked child is a writer of its own."""
        self._recorder.forget()
        self._export.forget()
        self._exemplars.forget()
        self._gauges_told = {}
        self._outbox.reset()
        self._described.clear()
        self._commit = self._next_commit = None

    # asking
    async def query(
        self,
        metric: Metric | str,
        stat: str = "total",
        *,
        by: str | Sequence[str] = (),
        where: Mapping[str, str | Sequence[str]] | str = "",
        since: Moment = "1h",
        until: Moment = "now",
        step: Duration | None = None,
        top: int | None = None,
    ) -> Result:
        """What the fleet has recorded. No data is None, never 0.

        stat: total, rate (counters); count, sum, avg, rate, p50 … p99.9 (histograms); sum, avg, min, max, last (gauges: over
        the live processes, now; a killed one's for 10 s more; with `step` from their history). where: {"model": "gpt-4o"} or
        PromQL matchers. step: seconds, for points instead of one value.
        Answered in whole windows, the finest that are kept of `since` (10 s up to 2 h ago, then minutes, hours, days) or those
        that `step` is made of: `since` is rounded down, `until` up (not beyond now); rates are over what that covers.
        InvalidArgument names what is wrong; StoreUnavailable: ask again.
        """
        return await query.ask(self._store(), metric, stat, by=by, where=where, since=since, until=until, step=step, top=top)

    async def compact(self) -> int:
        """Roll up the fleet's windows that are over into minutes, hours and days; returns how many blocks were made.

        Any process may, at any time; a background job does. StoreUnavailable: what was done stays done."""
        return await rollup.compact(self._store())

    # for others
    def expose(self) -> None:
        """This process shows numbers: it keeps its own totals from now on, and watches whether the store goes back."""
        self._export.begin()

    async def look(self) -> None:
        """For who carries totals elsewhere, about once a second: notice when the store goes back."""
        await self._export.look()

    @property
    def given_up(self) -> int:
        """How often totals became lower and stayed so, as far as this process has seen."""
        return self._export.gaps.given_up

    async def families(self) -> list[Family]:
        """The fleet's lifetime totals. StoreUnavailable, also while what a failover lost is sent again."""
        return await self._export.fleet()

    async def exposition(self, *, form: Form = "text", scope: Literal["fleet", "instance"] = "fleet") -> str:
        """For Prometheus: the fleet's lifetime totals, the same from every instance (StoreUnavailable as `families`), or what
        this process recorded since `expose`."""
        if scope == "instance":
            return await openmetrics.exposition(self._export.own(), form, openmetrics.build_info(form))
        return await openmetrics.exposition(await self._export.fleet(), form)
