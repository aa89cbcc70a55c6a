"""Numbers at the door: durations, sizes, amounts, counts. NaN, infinities, negatives and halves are refused here, once."""

import math
import re
from datetime import UTC, datetime, timedelta
from decimal import Context, Decimal, InvalidOperation
from fractions import Fraction

from .errors import InvalidArgument

NANO = 1_000_000_000
MAX_EXACT = 2**52
"""The largest whole number that every script handles exactly, with room to add two of them (Lua numbers are doubles)."""

_MONEY = Context(prec=60)
"""The application's own may have any number of digits."""
_DURATION = re.compile(r"(\d{1,18}(?:\.\d{1,18})?)(us|ms|s|m|h|d|w)?", re.ASCII)
_SECONDS = {
    "us": Fraction(1, 10**6),
    "ms": Fraction(1, 1000),
    "s": Fraction(1),
    "m": Fraction(60),
    "h": Fraction(3600),
    "d": Fraction(86_400),
    "w": Fraction(7 * 86_400),
}
_SIZE = re.compile(r"(\d{1,18})(B|KiB|MiB|GiB|kB|MB|GB)?")
_BYTES = {"B": 1, "KiB": 2**10, "MiB": 2**20, "GiB": 2**30, "kB": 10**3, "MB": 10**6, "GB": 10**9}


def shown(value: object, length: int = 80) -> str:
    """A value in an error, cut to a length. Whole numbers of thousands of digits are never spelled: Python refuses to."""
    if isinstance(value, int) and value.bit_length() > 1024:
        return f"a whole number of {value.bit_length():,} bits"
    try:
        return (str(value) if isinstance(value, Decimal | Fraction) else repr(value))[:length]
    except Exception:  # of a stranger's __repr__, or a huge number inside of something
        return f"a {type(value).__name__}"


def _exact(value: object, what: str) -> Fraction:
    if isinstance(value, bool) or not isinstance(value, int | float | Decimal | Fraction):
        raise InvalidArgument(f"{what} must be a number, got {shown(value, 80)}")
    if isinstance(value, Decimal) and value.is_finite() and not -400 < value.adjusted() < 40:
        if value:
            # Nine characters may spell ten million digits.
            raise InvalidArgument(f"{what} must be below 1e40, got {shown(value, 60)}")
        value = 0
    try:
        # A float means its shortest decimal form: 0.1 is one tenth, not the double next to it.
        return Fraction(str(value)) if isinstance(value, float) else Fraction(value)
    except (ValueError, OverflowError, InvalidOperation):
        raise InvalidArgument(f"{what} must be a finite number, got {shown(value, 80)}") from None


def _rounded(value: object, factor: int, what: str) -> int:
    """So many times the value, as the nearest whole number, halves to even: exact, and quick for what is usual."""
    if type(value) is float:
        product = value * factor
        # The product of doubles is off by less than a thousandth here: what is not near a half rounds as the exact one does.
        if -1e12 < product < 1e12 and abs(product - (whole := round(product))) < 0.499:
            return whole
    elif type(value) is int:
        return value * factor
    elif type(value) is Decimal and value.is_finite() and -400 < value.adjusted() < 40:
        numerator, denominator = value.as_integer_ratio()
        whole, rest = divmod(numerator * factor, denominator)
        if not rest:
            return whole
    return round(_exact(value, what) * factor)


def microseconds(value: object, what: str = "duration") -> int:
    """Whole microseconds of a duration: seconds, a timedelta, or "250ms" "30s" "5m" "1h" "7d"."""
    if isinstance(value, timedelta):
        value = Fraction(value // timedelta(microseconds=1), 10**6)
    if isinstance(value, str):
        found = _DURATION.fullmatch(value.strip())
        if found is None:
            raise InvalidArgument(
                f"{what}: {shown(value, 80)} is not a duration", remedy='Write seconds or "500ms", "5m", "1h"'
            )
        value = Fraction(found[1]) * _SECONDS[found[2] or "s"]
    whole = _rounded(value, 1_000_000, what)
    if not 0 <= whole <= MAX_EXACT:
        raise InvalidArgument(f"{what} must be between 0 and 142 years, got {shown(value, 80)}")
    return whole


def seconds(value: object, what: str = "duration") -> float:
    """Seconds of a duration, as asyncio has them."""
    if type(value) is float and 0.0 <= value <= 1e9:
        return value
    return microseconds(value, what) / 1e6


def size(value: object, what: str = "size") -> int:
    """Bytes: a whole number, or "64MiB"."""
    if isinstance(value, str) and (found := _SIZE.fullmatch(value.strip())):
        return int(found[1]) * _BYTES[found[2] or "B"]
    if isinstance(value, bool) or not isinstance(value, int) or value < 0:
        raise InvalidArgument(f"{what}: {shown(value, 80)} is not a size", remedy='Write bytes or "64MiB"')
    return value


def units(value: object, unit: str, what: str = "amount") -> int:
    """An amount as the scripts count it: nano-dollars for usd, whole numbers for everything else, 0 .. 2^52."""
    if unit == "usd":
        whole = _rounded(value, NANO, what)
    else:
        exact = _exact(value, what)
        if exact.denominator != 1:
            raise InvalidArgument(f"{what} must be a whole number of {unit}, got {shown(value, 80)}")
        whole = exact.numerator
    if whole < 0:
        raise InvalidArgument(f"{what} must not be negative, got {shown(value, 80)}")
    if whole > MAX_EXACT:
        raise InvalidArgument(
            f"{what} must be at most 2^52 {'nano-dollars' if unit == 'usd' else unit}, got {shown(value, 80)}"
        )
    return whole


def parsed(value: object, what: str) -> object:
    """A number that may be written as a string, so that money keeps its digits. InvalidArgument names the field."""
    if not isinstance(value, str):
        return value
    try:
        if len(value) <= 64:
            return Decimal(value)
    except InvalidOperation:
        pass
    raise InvalidArgument(f"{what}: {shown(value, 60)} is not a number")


def amount(whole: int, unit: str) -> int | Decimal:
    """The other way: what a person reads."""
    if unit != "usd":
        return whole
    dollars = _MONEY.normalize(Decimal(whole).scaleb(-9, _MONEY))
    # 50 and not 5E+1.
    return dollars.quantize(Decimal(1), context=_MONEY) if dollars == dollars.to_integral_value() else dollars


def nano(value: object, what: str = "value") -> int:
    """A recorded value in billionths, exact for every int and Decimal of nine places."""
    if type(value) is float and 0.0 <= value < 1e6:
        # A double below 2^20 has more digits than nine places need: rounding it is what the exact way below gives too.
        return round(value * NANO)
    return _rounded(value, NANO, what)


_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_LATEST_US = 250_000_000_000_000_000
"""The year 9892: every moment in reach has a datetime."""


def _in_range(us: int, what: str) -> int:
    if not 0 <= us <= _LATEST_US:
        raise InvalidArgument(f"{what} must be between 1970 and 9892")
    return us


def moment_us(value: datetime | str, now_us: int, what: str = "moment") -> int:
    """Microseconds since the epoch of an aware datetime, RFC 3339, a date, "now", or an age ("7d" = seven days ago)."""
    if isinstance(value, str):
        text = value.strip()
        if text == "now":
            return now_us
        if _DURATION.fullmatch(text):
            return _in_range(now_us - microseconds(text, what), what)
        try:
            value = datetime.fromisoformat(text)
        except ValueError:
            raise InvalidArgument(
                f"{what}: {text!r:.80} is not a moment", remedy='Write RFC 3339, a date, "now", or an age such as "1h"'
            ) from None
        if value.tzinfo is None and len(text) == 10:
            value = value.replace(tzinfo=UTC)
        if value.tzinfo is None:
            raise InvalidArgument(
                f"{what}: {text!r:.80} does not say its time zone", remedy=f'Write "{value.isoformat()}Z" for UTC'
            )
    if not isinstance(value, datetime) or value.tzinfo is None:
        raise InvalidArgument(
            f"{what} must be an aware datetime or a string, got {shown(value, 80)}",
            remedy='Give it a time zone, as in datetime.now(timezone.utc); or write an age such as "1h"',
        )
    us = (value - _EPOCH) // timedelta(microseconds=1)
    return _in_range(us, what)


def moment(us: int) -> datetime:
    """An aware datetime of microseconds since the epoch."""
    return _EPOCH + timedelta(microseconds=us)


def timeout(value: float | None, what: str = "timeout") -> float | None:
    """Seconds to wait, or None for ever."""
    if value is None:
        return None
    if isinstance(value, int | float) and not isinstance(value, bool) and value > 1e9:
        return None  # thirty years and more
    if isinstance(value, bool) or not isinstance(value, int | float) or math.isnan(value) or value < 0:
        raise InvalidArgument(f"{what} must be seconds >= 0 or None, got {shown(value, 80)}")
    return float(value)
