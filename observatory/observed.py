"""`obs.observe`: a span around every call of an async function, how long it took, and how it ended."""

import functools
import inspect
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Mapping
from contextlib import contextmanager
from time import perf_counter
from typing import Any

from opentelemetry import trace
from opentelemetry.trace import Span

from .errors import InvalidArgument
from .features.metrics import Metrics
from .names import OBSERVED
from .redaction import Redactor
from .tracing import Tracing


class Observer:
    """Observes async functions and async generators."""

    def __init__(
        self, tracing: Callable[[], Tracing], metrics: Callable[[], Metrics], redactor: Callable[[], Redactor]
    ) -> None:
        self._tracing = tracing
        self._metrics = metrics
        self._redactor = redactor

    def observed(self, fn: Any, name: str | None = None, *, capture: bool = False) -> Any:
        """The same function, observed. InvalidArgument where it is none that awaits."""
        if name is not None and (not isinstance(name, str) or not name):
            raise InvalidArgument(f"name must be a non-empty string, got {name!r:.80}")
        called = str(name or getattr(fn, "__qualname__", type(fn).__qualname__))
        asked = fn if inspect.isroutine(fn) or isinstance(fn, functools.partial) else getattr(fn, "__call__", fn)  # noqa: B004
        if inspect.isasyncgenfunction(asked):
            return self._generator(fn, called, capture=capture)
        if inspect.iscoroutinefunction(asked):
            return self._coroutine(fn, called, capture=capture)
        remedy = "Use `with obs.span(...)` inside of it"
        if isinstance(fn, staticmethod | classmethod):
            remedy = "Write @obs.observe below @staticmethod or @classmethod"
        raise InvalidArgument(f"observe takes an async function, got {called}, which is none", remedy=remedy)

    def _coroutine(self, fn: Any, name: str, *, capture: bool) -> Any:
        @functools.wraps(fn)
        async def observed(*args: Any, **kwargs: Any) -> Any:
            tracing = self._tracing()
            with self._timed(name), tracing.span(name) as span:
                if capture:
                    self._say(span, "observatory.arguments", lambda: _arguments(fn, args, kwargs))
                result = await fn(*args, **kwargs)
                if capture:
                    self._say(span, "observatory.result", lambda: {"result": result})
                return result

        return observed

    def _generator(self, fn: Any, name: str, *, capture: bool) -> Any:
        @functools.wraps(fn)
        async def observed(*args: Any, **kwargs: Any) -> AsyncIterator[Any]:
            tracing = self._tracing()
            # Current while the generator works, and not while its reader does.
            span = tracing.started(name)
            inner: AsyncGenerator[Any, Any] = fn(*args, **kwargs)
            items, send = 0, functools.partial(inner.asend, None)
            try:
                with self._timed(name), tracing.noting(span):
                    if capture:
                        self._say(span, "observatory.arguments", lambda: _arguments(fn, args, kwargs))
                    while True:
                        try:
                            with trace.use_span(span, record_exception=False, set_status_on_exception=False):
                                item = await send()
                        except StopAsyncIteration:
                            return
                        items += 1
                        try:
                            send = functools.partial(inner.asend, (yield item))
                        except GeneratorExit:
                            raise
                        except BaseException as error:  # thrown in by the reader
                            send = functools.partial(inner.athrow, error)
            finally:
                span.set_attribute("observatory.items", items)
                span.end()
                await inner.aclose()

        return observed

    @contextmanager
    def _timed(self, name: str) -> Any:
        began, labels = perf_counter(), {"function": name[:200], "status": "ok"}
        try:
            yield
        except Exception as error:
            labels |= {"status": "error", "error": type(error).__name__[:200]}
            raise
        except BaseException:
            labels["status"] = "cancelled"
            raise
        finally:
            self._metrics().record_histogram(OBSERVED, perf_counter() - began, labels)

    def _say(self, span: Span, attribute: str, what: Callable[[], Mapping[str, Any]]) -> None:
        if span.is_recording():
            span.set_attribute(attribute, self._redactor().line(what())[0])


def _arguments(fn: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> dict[str, Any]:
    """By name, so that a password is known as one."""
    try:
        bound = inspect.signature(fn).bind(*args, **kwargs).arguments
    except (TypeError, ValueError):
        return {"args": args, "kwargs": kwargs}
    return {name: value for name, value in bound.items() if name not in ("self", "cls")}
