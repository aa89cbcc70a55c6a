"""Shared, typed entries, each computed once in the fleet."""

from .cache import Cache
from .counts import CacheStats
from .space import Bounds, CacheSpace
from .untyped import CacheReport, Found, UntypedCache, UntypedCaches, report

__all__ = ["Bounds", "Cache", "CacheReport", "CacheSpace", "CacheStats", "Found", "UntypedCache", "UntypedCaches", "report"]
