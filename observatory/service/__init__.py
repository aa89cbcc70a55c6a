"""The door for HTTP: stateless, any number behind a load balancer."""

from .app import build
from .server import serve

__all__ = ["build", "serve"]
