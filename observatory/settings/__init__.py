"""Settings: the table, and how its layers are read."""

from .load import Settings
from .table import TABLE, LimitSettings, RetrySettings, bounds, defaults, environment_name

__all__ = ["TABLE", "LimitSettings", "RetrySettings", "Settings", "bounds", "defaults", "environment_name"]
