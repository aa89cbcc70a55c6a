"""A breaker's law in plain Python: what a process goes by while the store is away. lua/breaker says the same for the fleet."""

from typing import Literal, NamedTuple

from .terms import Terms

SLICES = 10
WORKS, FAILS, GIVEN_BACK = 1, 2, 3
State = Literal["closed", "open", "half_open"]


class View(NamedTuple):
    """How a breaker stands, as the scripts answer."""

    open: int = 0
    epoch: int = 0
    left_us: int = 0
    forced: str = ""
    calls: int = 0
    failures: int = 0
    probing_us: int = 0
    since_us: int = 0

    @property
    def held(self) -> str:
        """ "open" or "closed" where somebody holds it by hand."""
        return self.forced.partition(" ")[0]

    @property
    def state(self) -> State:
        """What callers meet."""
        if self.forced:
            return "open" if self.held == "open" else "closed"
        if not self.open:
            return "closed"
        return "open" if self.left_us > 0 else "half_open"


class Machine:
    """now_us: of any clock, as long as it is the same one."""

    __slots__ = ("epoch", "forced", "open", "probe", "probe_until_us", "reopen_us", "run", "since_us", "slices", "window_us")

    def __init__(self) -> None:
        self.open = False
        self.epoch = 0
        self.forced = ""
        self.since_us = 0
        self.reopen_us = 0
        self.run = 0
        self.probe = ""
        self.probe_until_us = 0
        self.window_us = 0
        self.slices: dict[int, list[int]] = {}

    def adopt(self, view: View, now_us: int) -> None:
        """What the fleet says. Counts of here begin anew: the fleet has had them."""
        self.open, self.epoch, self.forced = bool(view.open), view.epoch, view.forced
        self.since_us, self.reopen_us = view.since_us, now_us + view.left_us
        self.probe, self.probe_until_us = ("?" if view.probing_us else ""), now_us + view.probing_us
        self.run, self.slices = 0, {}

    def view(self, now_us: int) -> View:
        calls, failures = self._counted(now_us)
        return View(
            int(self.open),
            self.epoch,
            max(self.reopen_us - now_us, 0) if self.open else 0,
            self.forced,
            calls,
            failures,
            max(self.probe_until_us - now_us, 0) if self.open and self.probe else 0,
            self.since_us,
        )

    def _counted(self, now_us: int) -> tuple[int, int]:
        live = [said for start, said in self.slices.items() if now_us - self.window_us < start <= now_us]
        return sum(calls for calls, _ in live), sum(failures for _, failures in live)

    def _become(self, is_open: bool, now_us: int, open_us: int) -> None:
        self.open = is_open
        self.epoch += 1
        self.since_us = now_us
        self.run = 0
        self.probe = ""
        self.reopen_us = now_us + open_us if is_open else 0
        self.slices = {}

    def report(
        self,
        now_us: int,
        terms: Terms,
        *,
        epoch: int,
        calls: int = 0,
        failures: int = 0,
        tail: int = 0,
        outcome: int = 0,
        token: str = "",
        open_us: int,
    ) -> View:
        """As breaker/report."""
        self.window_us = terms.window_us
        if self.open:
            if outcome == GIVEN_BACK and token == self.probe:
                self.probe = ""
            elif outcome in (WORKS, FAILS) and epoch == self.epoch:
                self._become(outcome == FAILS, now_us, open_us)
        elif calls > 0 and epoch == self.epoch:
            length_us = terms.window_us // SLICES
            start_us = now_us - now_us % length_us
            for old in [start for start in self.slices if start // length_us % SLICES == start_us // length_us % SLICES]:
                if old != start_us:
                    del self.slices[old]
            said = self.slices.setdefault(start_us, [0, 0])
            said[0] += calls
            said[1] += failures
            self.run = self.run + failures if calls == failures else tail
            seen, failed = self._counted(now_us)
            in_a_row = 0 < terms.consecutive <= self.run
            often = seen >= terms.min_calls and failed > 0 and failed * 1_000_000 >= terms.failure_ppm * seen
            if not self.forced and (in_a_row or often):
                self._become(True, now_us, open_us)
        return self.view(now_us)

    def try_probe(self, now_us: int, token: str, lease_us: int) -> bool:
        """As breaker/probe."""
        if not self.open or self.forced or now_us < self.reopen_us:
            return False
        if self.probe not in ("", token) and now_us < self.probe_until_us:
            return False
        self.probe, self.probe_until_us = token, now_us + lease_us
        return True

    def force(self, now_us: int, to: str, reason: str) -> View:
        """As breaker/force."""
        self.forced = "" if to == "auto" else f"{to} {now_us} {reason[:500]}"
        self.epoch += 1
        self.since_us = now_us
        self.run, self.probe, self.slices = 0, "", {}
        return self.view(now_us)
