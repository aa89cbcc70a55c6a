"""Counters, gauges and histograms: recorded locally, flushed exactly once, asked of the whole fleet."""

from .handles import Counter, Gauge, Histogram
from .metrics import Metrics
from .otlp import OtlpExport
from .query import Point, Result, Series

__all__ = ["Counter", "Gauge", "Histogram", "Metrics", "OtlpExport", "Point", "Result", "Series"]
