"""Settings: the table, and how its layers are read."""

from .load import Settings
from .prices import Price
from .table import TABLE, LimitSettings, RetrySettings, bounds, defaults, environment_name

__all__ = ["TABLE", "LimitSettings", "Price", "RetrySettings", "Settings", "bounds", "defaults", "environment_name"]
