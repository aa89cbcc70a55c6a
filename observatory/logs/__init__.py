"""Lines: what is said, how it is written, and what is not said twice."""

from .logger import INTERNAL, Logger, dumps, level_named

__all__ = ["INTERNAL", "Logger", "dumps", "level_named"]
