"""Errors as RFC 9457 problem documents."""

import msgspec
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response

from ..asgi import MEDIA_TYPE, problem
from ..errors import ObservatoryError
from ..logs import INTERNAL

_TITLES = {404: ("not_found", "There is nothing here"), 405: ("method_not_allowed", "This method is not for this path")}


def response(request: Request, error: ObservatoryError) -> Response:
    """The answer for an error of ours."""
    status, headers, content = problem(error, request.url.path)
    return Response(content, status, headers)


async def on_ours(request: Request, error: Exception) -> Response:
    if not isinstance(error, ObservatoryError):
        raise error
    return response(request, error)


async def on_http(request: Request, error: Exception) -> Response:
    """What the router itself refuses: no such path, no such method."""
    if not isinstance(error, HTTPException):
        raise error
    code, title = _TITLES.get(error.status_code, ("http", error.detail))
    members = {
        "type": f"urn:observatory:problem:{code}",
        "title": title,
        "status": error.status_code,
        "code": code,
        "retryable": False,
        "instance": request.url.path,
    }
    return Response(msgspec.json.encode(members), error.status_code, dict(error.headers or {}), MEDIA_TYPE)


async def on_bug(request: Request, error: Exception) -> Response:
    """A fault of ours: logged here, told without its text."""
    INTERNAL.error("%s %s failed", request.method, request.url.path, exc_info=error)
    members = {
        "type": "urn:observatory:problem:internal",
        "title": "Something went wrong in the service",
        "status": 500,
        "code": "internal",
        "retryable": True,
        "instance": request.url.path,
    }
    return Response(msgspec.json.encode(members), 500, None, MEDIA_TYPE)
