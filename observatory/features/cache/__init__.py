"""Shared, typed entries, each computed once in the fleet."""

from .cache import Cache
from .counts import CacheStats
from .space import CacheSpace

__all__ = ["Cache", "CacheSpace", "CacheStats"]
