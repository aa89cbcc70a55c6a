"""Spans, and which of them are sent."""

from .spans import Tracing, ids, sampled

__all__ = ["Tracing", "ids", "sampled"]
