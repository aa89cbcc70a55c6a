"""Shared, typed entries."""

from .cache import Cache, CacheSpace

__all__ = ["Cache", "CacheSpace"]
