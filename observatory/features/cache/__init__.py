"""Shared, typed entries, each computed once in the fleet."""

from .cache import Cache
from .counts import CacheStats
from .space import Bounds, CacheSpace

__all__ = ["Bounds", "Cache", "CacheSpace", "CacheStats"]
