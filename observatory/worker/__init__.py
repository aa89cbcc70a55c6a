"""The door for work: takes partitions of the event streams and applies what lies there, each event once."""

from .worker import Worker

__all__ = ["Worker"]
