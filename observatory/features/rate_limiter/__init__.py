"""Cluster-wide limits: what a limit is, what an answer says, and who asks the script."""

from .decision import Decision
from .limit import Limit, Override
from .limiter import RateLimiter
from .reservation import PendingReservation, Reservation, Settlement
from .wanted import Cost, LimitRef

__all__ = [
    "Cost",
    "Decision",
    "Limit",
    "LimitRef",
    "Override",
    "PendingReservation",
    "RateLimiter",
    "Reservation",
    "Settlement",
]
