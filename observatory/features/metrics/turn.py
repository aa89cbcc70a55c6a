"""A lock for what a finalizer or a signal handler may come back into, in the middle of it and on the same thread."""

import contextlib
import threading
from collections import deque
from collections.abc import Callable
from types import TracebackType


class Turn:
    """One thread's turn at a time. Who comes while it is his own waits for nothing: he leaves word, and it is done behind."""

    def __init__(self) -> None:
        self._lock = threading.RLock()
        self._left: deque[Callable[[], object]] = deque()
        self._catching_up = False

    @property
    def is_mine(self) -> bool:
        """Whether this very thread is in the middle of its turn: it must not touch what is half done."""
        return bool(self._lock._is_owned())  # type: ignore[attr-defined]  # noqa: SLF001 (as threading.Condition does)

    def __enter__(self) -> None:
        self._lock.acquire()

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None, /) -> None:
        self._lock.release()
        if self._left and not self._catching_up and not self.is_mine:
            # Out of turn again: what was left is done as if it came now; it has turns of its own.
            self._catching_up = True
            try:
                with contextlib.suppress(IndexError):
                    while True:
                        self._left.popleft()()
            finally:
                self._catching_up = False

    def free(self) -> bool:
        """Take the turn if nobody has it; then `__exit__` ends it."""
        return not self.is_mine and self._lock.acquire(blocking=False)

    def leave(self, work: Callable[[], object]) -> None:
        """For behind the turn that is being had."""
        self._left.append(work)
