"""What somebody else has spoilt in the store costs itself: it is passed over, and told once."""

from ...logs import INTERNAL

_MOST = 1000
"""Different ones that a process tells of."""
_told: set[str] = set()


def tell(what: str) -> None:
    """An error in the log, the first time that this process finds it."""
    if what not in _told and len(_told) < _MOST:
        _told.add(what)
        INTERNAL.error("metrics: %s; it is passed over", what)
