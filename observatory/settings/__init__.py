"""Settings: the table, and how its layers are read."""

from .load import Settings
from .prices import Price
from .table import TABLE, BreakerSettings, LimitSettings, RetrySettings, bounds, defaults, environment_name

__all__ = [
    "TABLE",
    "BreakerSettings",
    "LimitSettings",
    "Price",
    "RetrySettings",
    "Settings",
    "bounds",
    "defaults",
    "environment_name",
]
