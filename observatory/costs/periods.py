"""Periods by their names: "last-week", "2026-W47", "2026-11", "2026-11-16", in a time zone."""

import re
from datetime import UTC, date, datetime, time, timedelta
from zoneinfo import ZoneInfo

from .. import units
from ..errors import InvalidArgument
from ..features.rate_limiter.shape import Window, window

_WORDS = {
    "today": ("day", False),
    "yesterday": ("day", True),
    "this-week": ("week", False),
    "last-week": ("week", True),
    "this-month": ("month", False),
    "last-month": ("month", True),
}
_NAMED = re.compile(r"(\d{4})-(?:W(\d{2})|(\d{2})(?:-(\d{2}))?)", re.ASCII)
_REMEDY = f'Write {", ".join(_WORDS)}, "2026-W47", "2026-11" or "2026-11-16"'


def period(name: object, timezone: str, now_us: int) -> Window:
    """The day, week (from Monday, as ISO 8601 counts them) or month of a name, in microseconds. InvalidArgument."""
    if not isinstance(name, str):
        raise InvalidArgument(f"period must be a text, got {units.shown(name, 40)}", remedy=_REMEDY)
    if (said := _WORDS.get(name)) is not None:
        kind, before = said
        found = window(kind, timezone, now_us)
        return window(kind, timezone, found.start_us - 1) if before else found
    read = _NAMED.fullmatch(name)
    try:
        if read is None:
            raise ValueError
        year, week, month, day = (None if part is None else int(part) for part in read.groups())
        kind = "week" if week is not None else "month" if day is None else "day"
        first = date(year or 0, month or 1, day or 1) if week is None else date.fromisocalendar(year or 0, week, 1)
        if not 1970 < first.year < 9000:
            raise ValueError
    except ValueError:
        raise InvalidArgument(f"period: {name!r:.40} is no period", remedy=_REMEDY) from None
    window(kind, timezone, now_us)  # refuses a zone that is not known
    zone = UTC if timezone == "UTC" else ZoneInfo(timezone)
    # Every day has a noon, whatever its clocks do.
    noon = datetime.combine(first, time(12), zone)
    return window(kind, timezone, (noon.astimezone(UTC) - datetime(1970, 1, 1, tzinfo=UTC)) // timedelta(microseconds=1))
