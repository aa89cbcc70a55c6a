"""Counters, gauges and histograms: recorded locally, flushed exactly once, asked of the whole fleet."""

from .metrics import Metrics
from .otlp import OtlpExport
from .query import Point, Result, Series
from .recorder import Counter, Gauge, Histogram

__all__ = ["Counter", "Gauge", "Histogram", "Metrics", "OtlpExport", "Point", "Result", "Series"]
