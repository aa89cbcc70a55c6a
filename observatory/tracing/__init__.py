"""Spans, and which of them are sent."""

from .spans import Tracing, ids, sampled, trace_id

__all__ = ["Tracing", "ids", "sampled", "trace_id"]
