"""Cluster-wide limits: what a limit is, what an answer says, and who asks the script."""

from .decision import Decision
from .limit import Limit
from .limiter import RateLimiter

__all__ = ["Decision", "Limit", "RateLimiter"]
