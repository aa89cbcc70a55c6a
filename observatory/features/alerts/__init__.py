"""Alerts: told once in the fleet, as an event and to whoever asked for it."""

from .alerts import Alerts
from .outbox import Entry, Outbox
from .signing import checked_secrets, signed

__all__ = ["Alerts", "Entry", "Outbox", "checked_secrets", "signed"]
