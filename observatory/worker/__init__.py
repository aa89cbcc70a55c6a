"""The door for work: takes partitions of the event streams and applies what lies there, each event once; and leads roles."""

from .roles import chosen, presence_of
from .worker import Worker

__all__ = ["Worker", "chosen", "presence_of"]
