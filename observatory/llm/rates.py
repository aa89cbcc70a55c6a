"""The rates of one model at one moment, and the sum of a call by them."""

from fractions import Fraction
from typing import Final

import msgspec

from ..units import MAX_EXACT
from .wire.used import Used

Rate = int | Fraction
"""Billionths of a dollar for a million."""
_MILLION: Final = 1_000_000


class Steps(msgspec.Struct, frozen=True):
    """A rate that depends on how long the input is: the last one that it exceeds holds for all of the call."""

    below: Rate
    above: tuple[tuple[int, Rate], ...]

    def of(self, input_tokens: int) -> Rate:
        found = self.below
        for start, rate in self.above:
            if input_tokens > start:
                found = rate
        return found


class Rates(msgspec.Struct, frozen=True):
    """None: there is none. The cache and reasoning cost what input and output cost then: no discount is a price too."""

    input: Rate | Steps | None = None
    output: Rate | Steps | None = None
    cache_read: Rate | Steps | None = None
    cache_write: Rate | Steps | None = None
    cache_write_1h: Rate | Steps | None = None
    reasoning: Rate | Steps | None = None
    audio_input: Rate | Steps | None = None
    audio_output: Rate | Steps | None = None
    web_search: Rate | Steps | None = None
    request: Rate | Steps | None = None

    def cost(self, used: Used) -> int | None:
        """Rounded once, to the nearest billionth. None: something that was used has no rate, or the counts contradict each
        other."""
        usage = used.usage
        if usage.audio_input_tokens and usage.cache_read_input_tokens:
            return None  # how much of the audio was cached is not said, and that has a rate of its own
        short = usage.cache_write_input_tokens - used.cache_write_1h
        input_text = (
            usage.input_tokens - usage.cache_read_input_tokens - usage.cache_write_input_tokens - usage.audio_input_tokens
        )
        output_text = usage.output_tokens - usage.reasoning_output_tokens - usage.audio_output_tokens
        total: Rate = 0
        for count, rate in (
            (input_text, self.input),
            (output_text, self.output),
            (usage.cache_read_input_tokens, self.input if self.cache_read is None else self.cache_read),
            (short, self.input if self.cache_write is None else self.cache_write),
            (used.cache_write_1h, self.cache_write_1h),
            (usage.reasoning_output_tokens, self.output if self.reasoning is None else self.reasoning),
            (usage.audio_input_tokens, self.audio_input),
            (usage.audio_output_tokens, self.audio_output),
            (used.web_searches, self.web_search),
            (1, 0 if self.request is None else self.request),
        ):
            if not count:
                continue
            if count < 0 or rate is None:
                return None
            total += count * (rate.of(usage.input_tokens) if isinstance(rate, Steps) else rate)
        # Of whole numbers the same as round(Fraction(total) / _MILLION), which takes twenty times as long.
        nano, rest = divmod(total, _MILLION)
        nano += rest * 2 > _MILLION or (rest * 2 == _MILLION and nano % 2 == 1)
        return nano if nano <= MAX_EXACT else None
