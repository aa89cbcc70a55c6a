"""Settings: the table, and how its layers are read."""

from .load import Settings
from .named import BreakerSettings, LimitSettings
from .prices import Price
from .table import TABLE, LlmSettings, RetrySettings, bounds, defaults, environment_name
from .webhooks import Webhook

__all__ = [
    "TABLE",
    "BreakerSettings",
    "LimitSettings",
    "LlmSettings",
    "Price",
    "RetrySettings",
    "Settings",
    "Webhook",
    "bounds",
    "defaults",
    "environment_name",
]
