"""The time that a question is about, and the windows that answer it: the coarsest that fit, none of them twice."""

from collections.abc import Iterator
from typing import NamedTuple

from ... import units
from ...errors import InvalidArgument
from ...types import Duration, Moment
from .blocks import DAY, FINE, HOUR, LEVELS, Level

MAX_POINTS = 11_000


class Piece(NamedTuple):
    """One window of one level, by its start."""

    level: Level
    start_us: int

    def finer(self) -> "Iterator[Piece]":
        """The windows of the next finer level that it is made of."""
        level = LEVELS[LEVELS.index(self.level) - 1]
        return (Piece(level, at) for at in range(self.start_us, self.start_us + self.level.window_us, level.window_us))


class Member(NamedTuple):
    """An hour or a day that does not hold all of its minutes. Its text is how the store knows it."""

    level: Level
    number: int
    metric: str

    def __str__(self) -> str:
        return f"{self.level.name}:{self.number}:{self.metric}"

    @classmethod
    def of(cls, text: str) -> "Member | None":
        """None: not one of ours; a later release may know more of them."""
        name, _, rest = text.partition(":")
        number, _, metric = rest.partition(":")
        level = next((level for level in (HOUR, DAY) if level.name == name), None)
        return cls(level, int(number), metric) if level is not None and number.isdecimal() and metric else None


class Span(NamedTuple):
    """The time that is answered for, in microseconds: whole windows around what was asked, up to now."""

    since_us: int
    until_us: int
    step_us: int | None

    @classmethod
    def of(cls, since: Moment, until: Moment, step: Duration | None, now_us: int) -> "Span":
        """InvalidArgument names what cannot be answered, and what could."""
        until_us = units.moment_us(until, now_us, "until")
        since_us = units.moment_us(since, now_us, "since")
        if since_us >= until_us:
            lies = "in the future" if since_us > now_us else f"at {units.moment(since_us):%Y-%m-%dT%H:%M:%SZ}"
            raise InvalidArgument(
                f"since must be before until: it is {lies}, until at {units.moment(until_us):%Y-%m-%dT%H:%M:%SZ}",
                remedy='Write an earlier since; an age is counted back from now: "1h" is an hour ago',
            )
        age_us = now_us - since_us
        if age_us > DAY.keep_us:
            days = DAY.keep_us // DAY.window_us
            raise InvalidArgument(f"since must be at most {days} d ago", remedy=f'Nothing older is kept: write "{days}d"')
        grain = next(level for level in LEVELS if age_us <= level.keep_us)
        whole = grain
        step_us = None if step is None else units.microseconds(step, "step")
        if step_us is not None:
            if step_us < grain.window_us or step_us % grain.window_us:
                seconds = grain.window_us // 1_000_000
                raise InvalidArgument(
                    f"step must be a multiple of {seconds} s: of {age_us / 3.6e9:.3g} h ago nothing finer is kept",
                    remedy=f"Ask with step={seconds}, or with a later since",
                )
            if (until_us - since_us) // step_us > MAX_POINTS:
                raise InvalidArgument(
                    f"step is too small: more than {MAX_POINTS} points", remedy="Write a longer step, or a later since"
                )
            whole = next(level for level in reversed(LEVELS) if step_us % level.window_us == 0)
        since_us -= since_us % whole.window_us
        end_us = until_us + -until_us % whole.window_us
        # The window that is under way is covered up to now.
        return cls(since_us, min(end_us, now_us) if now_us > since_us else end_us, step_us)

    @property
    def _end_us(self) -> int:
        return self.until_us + -self.until_us % FINE.window_us

    def step_at(self, moment_us: int) -> int:
        """The start of the step that a moment falls into."""
        return self.since_us if self.step_us is None else moment_us - (moment_us - self.since_us) % self.step_us

    def covered(self, at_us: int) -> float:
        """Seconds that the answer of the step at this moment stands for; the last step may not be over yet."""
        return (min(at_us + (self.step_us or self.until_us), self.until_us) - at_us) / 1e6

    def pieces(self) -> Iterator[Piece]:
        """The windows that cover it, in order, each within one step."""
        end_us = self._end_us
        for begins in range(self.since_us, end_us, self.step_us or end_us - self.since_us):
            yield from _cover(begins, min(begins + self.step_us, end_us) if self.step_us else end_us)


def _cover(since_us: int, until_us: int) -> Iterator[Piece]:
    while since_us < until_us:
        level = next(
            level
            for level in reversed(LEVELS)
            if level is FINE or (since_us % level.window_us == 0 and since_us + level.window_us <= until_us)
        )
        yield Piece(level, since_us)
        since_us += level.window_us
