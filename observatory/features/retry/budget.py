"""The fleet's retry budget: an outage of whatever is called is not multiplied by everybody who tries again.

Of each name at most a share of the calls may be retries, and a few on top (the reserve), counted over WINDOW for the whole
fleet in one script. Calls are told once a second; who wants to retry asks, which callers of one moment share. Nothing is asked
for a call that succeeds.

While the store is away a process retries from a share of its own: as large a part of its own calls, and its part of the reserve
(one at least). All processes together then stay within the same share, and the reserve plus one for each of them.
"""

import asyncio
from collections.abc import Awaitable, Callable

from ...clock import RoomClock
from ...errors import NotOpen, StoreError
from ...keys import Key
from ...settings import RetrySettings
from ...store.script import lua
from ...store.store import Store

WINDOW = 10.0
"""Seconds. Short, so that what was saved in quiet times is not spent in one moment."""
_SLICES = 10
_DENIED_FOR = 0.05
"""Seconds for which a refusal is remembered: a storm asks twenty times a second."""
_MOST_UNUSED = 100
_MOST_NAMES = 1000
"""Of one process; further ones share one."""
_OTHERS = "others"


@lua("retry/exchange")
def _exchange(
    store: Store, *, budget: Key, now_us: int, calls: int, want: int, share_ppm: int, reserve: int, window_us: int
) -> Awaitable[list[int]]: ...


class Account:
    """Of one name, in this process."""

    __slots__ = ("asking", "calls", "denied_until", "name", "slices", "unused", "waiting")

    def __init__(self, name: str) -> None:
        self.name = name
        self.calls = 0
        """First attempts that nobody was told of."""
        self.waiting: list[asyncio.Future[bool]] = []
        self.asking: asyncio.Task[None] | None = None
        self.denied_until = 0.0
        self.unused: list[float] = []
        """When retries were granted to somebody who had left by then: the next ones need not ask."""
        self.slices: dict[int, list[int]] = {}
        """Own calls and retries, by tenths of the window."""

    def note(self, calls: int, retries: int, at: float) -> None:
        """For the time when there is no store to ask."""
        now = int(at / WINDOW * _SLICES)
        if now not in self.slices:
            self.slices = {when: said for when, said in self.slices.items() if now - _SLICES < when <= now}
        said = self.slices.setdefault(now, [0, 0])
        said[0] += calls
        said[1] += retries

    def own(self, at: float) -> tuple[int, int]:
        now = int(at / WINDOW * _SLICES)
        live = [said for when, said in self.slices.items() if now - _SLICES < when <= now]
        return sum(calls for calls, _ in live), sum(retries for _, retries in live)


class RetryBudget:
    """share: of the calls that may be retries. reserve: retries of each name in WINDOW that need no calls, in the fleet."""

    def __init__(
        self, store: Callable[[], Store], *, share: float, reserve: int, instances: Callable[[], int], clock: RoomClock
    ) -> None:
        self._store = store
        self.clock = clock
        self.staged: RetrySettings | None = None
        """In a sandbox: its settings, which policies made before go by in all that code has not said."""
        self.use(share, reserve)
        self._instances = instances
        self._accounts: dict[str, Account] = {}

    def use(self, share: float, reserve: int) -> None:
        """From now on."""
        self._share_ppm = round(share * 1_000_000)
        self._reserve = reserve

    def account(self, name: str) -> Account:
        """The one of this name. A first attempt is counted by adding 1 to its `calls`."""
        found = self._accounts.get(name)
        if found is None:
            if len(self._accounts) >= _MOST_NAMES:
                name = _OTHERS
            found = self._accounts.setdefault(name, Account(name))
        return found

    async def take(self, account: Account) -> bool:
        """Whether one retry more is within the budget; it is spent then. Never raises for a store that is away."""
        while account.unused:
            if self.clock.monotonic() - account.unused.pop() < WINDOW:
                return True
        if self.clock.monotonic() < account.denied_until:
            return False
        answer: asyncio.Future[bool] = asyncio.get_running_loop().create_future()
        account.waiting.append(answer)
        if account.asking is None or account.asking.done():
            account.asking = asyncio.create_task(self._ask(account), name="observatory retry budget")
        return await answer

    async def _ask(self, account: Account) -> None:
        while account.waiting:
            waiting, account.waiting = [one for one in account.waiting if not one.done()], []
            granted = 0
            try:
                granted = await self._told(account, len(waiting))
            finally:
                if granted < len(waiting):
                    account.denied_until = self.clock.monotonic() + _DENIED_FOR
                for one in waiting:
                    if not one.done():
                        one.set_result(granted > 0)
                        granted -= 1
                account.unused = [*account.unused, *[self.clock.monotonic()] * granted][-_MOST_UNUSED:]

    async def _told(self, account: Account, want: int) -> int:
        calls, account.calls = account.calls, 0
        account.note(calls, 0, self.clock.monotonic())
        try:
            store = self._store()
            granted, _, _ = await _exchange(
                store,
                budget=store.keys.retry_budget(account.name),
                now_us=self.clock.now_us(),
                calls=calls,
                want=want,
                share_ppm=self._share_ppm,
                reserve=self._reserve,
                window_us=int(WINDOW * 1e6),
            )
        except (StoreError, NotOpen):
            granted = self._alone(account, want)
        account.note(0, granted, self.clock.monotonic())
        return granted

    def _alone(self, account: Account, want: int) -> int:
        calls, retries = account.own(self.clock.monotonic())
        reserve = max(self._reserve // max(self._instances(), 1), 1) if self._reserve else 0
        return max(min(want, calls * self._share_ppm // 1_000_000 + reserve - retries), 0)

    async def report(self) -> None:
        """Calls are told, so that the others may retry from them too. Those of a store that is away are not told later."""
        told = [self._told(account, 0) for account in self._accounts.values() if account.calls]
        if told:
            await asyncio.gather(*told)

    def forget(self) -> None:
        """A forked child: what was counted is the parent's."""
        self._accounts = {}
