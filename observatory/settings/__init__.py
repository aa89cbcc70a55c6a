"""Settings: the table, and how its layers are read."""

from .load import Settings
from .table import TABLE, LimitSettings, RetrySettings, defaults, environment_name

__all__ = ["TABLE", "LimitSettings", "RetrySettings", "Settings", "defaults", "environment_name"]
