"""For your tests. Needs the `embedded` extra; no network, no Docker.

async with sandbox(obs, clock=FrozenClock(), provider=reply("Paris.")) as box: ...
"""

from .clock import FrozenClock
from .errors import LeakedKeys, SandboxError, TimeStandsStill, UnexpectedCall
from .machine import server
from .provider import Provider
from .replies import reply
from .sandbox import Sandbox, sandbox

__all__ = [
    "FrozenClock",
    "LeakedKeys",
    "Provider",
    "Sandbox",
    "SandboxError",
    "TimeStandsStill",
    "UnexpectedCall",
    "reply",
    "sandbox",
    "server",
]
