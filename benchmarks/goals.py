"""What a table was to show, as numbers per round."""

from collections.abc import Collection, Mapping, Sequence

from .contest import Goal, Row


def times_the_best(who: str, at_least: float, in_flight: int, *, besides: Collection[str] = ()) -> Goal:
    """Operations/s of `who` over those of whoever of the others was fastest in the same round; not counted: `besides`."""

    def value(rows: Mapping[str, Row]) -> Sequence[float]:
        peers = [row.measures for name, row in rows.items() if name != who and name not in besides]
        if who not in rows or not peers:
            return []
        best = [max(peer.per_second for peer in one) for one in zip(*peers, strict=True)]
        return [ours.per_second / theirs for ours, theirs in zip(rows[who].measures, best, strict=True)]

    return Goal(f"operations/s of {who} over those of the best peer of the round", in_flight, value, at_least)


def times_the_latency(who: str, of: str, at_most: float, in_flight: int) -> Goal:
    """Median latency of `who` over that of another in the same round."""

    def value(rows: Mapping[str, Row]) -> Sequence[float]:
        if who not in rows or of not in rows:
            return []
        return [ours.p50 / theirs.p50 for ours, theirs in zip(rows[who].measures, rows[of].measures, strict=True)]

    return Goal(f"p50 of {who} over that of {of}", in_flight, value, at_most, at_most=True)


def p99_below(who: str, milliseconds: float, in_flight: int) -> Goal:
    """The 99th percentile of `who`."""

    def value(rows: Mapping[str, Row]) -> Sequence[float]:
        return [measure.p99 / 1000 for measure in rows[who].measures] if who in rows else []

    return Goal(f"p99 of {who} in ms", in_flight, value, milliseconds, at_most=True)
