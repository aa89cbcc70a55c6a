"""The door for HTTP: stateless, any number behind a load balancer."""

from ..errors import ConfigurationError

try:
    from .app import build
    from .server import serve
except ModuleNotFoundError as error:
    missing = (error.name or "").partition(".")[0]
    if missing not in ("starlette", "uvicorn"):
        raise
    raise ConfigurationError(
        f"the service needs {missing}, which is not installed", remedy="pip install 'observatory-fleet[service]'"
    ) from error

__all__ = ["build", "serve"]
