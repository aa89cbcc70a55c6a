"""Roles that one worker of the fleet has at a time: taken by a fenced lease, renewed, given up when it is lost."""

import asyncio
import random
from collections.abc import Sequence

from ..client import Observatory
from ..clock import monotonic
from ..errors import ObservatoryError, StoreError
from ..features.leases import Lease
from ..logs import INTERNAL
from .roles import Role


class Leaders:
    """The leader roles that this worker is ready to have.

    What holds: a step begins only while the lease is ours, and is cancelled as soon as it is known not to be. A process that
    was stopped and woke up may believe otherwise for the length of one step: what a step writes is harmless then, or compared
    with its fence.
    """

    def __init__(self, obs: Observatory, roles: Sequence[Role], lease: float) -> None:
        self._obs = obs
        self._roles = roles
        self._lease = lease
        self._tasks: list[asyncio.Task[None]] = []
        self._held: dict[str, Lease] = {}

    @property
    def leads(self) -> tuple[str, ...]:
        """The roles that are ours now, as far as we know."""
        return tuple(sorted(name for name, lease in self._held.items() if lease.is_live))

    def start(self) -> None:
        self._tasks = [asyncio.ensure_future(self._stand(role)) for role in self._roles]

    async def stop(self) -> None:
        """Stop, and give every role up, so that nobody has to wait for the leases to run out."""
        await self.cancel()
        held, self._held = tuple(self._held), {}
        self._tell()
        for name in held:
            await self._obs.leases.release(f"role:{name}")

    async def cancel(self) -> None:
        """Stop at once; leases run out by themselves."""
        tasks, self._tasks = self._tasks, []
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _stand(self, role: Role) -> None:
        """Take the role when it is free; have it until it is lost."""
        while True:
            lease = await self._ask(role)
            if lease is not None:
                self._held[role.name] = lease
                self._tell()
                INTERNAL.info("worker leads %s (fence %d)", role.name, lease.fence)
                try:
                    await self._lead(role, lease)
                finally:
                    role.leave()
                del self._held[role.name]
                self._tell()
                INTERNAL.warning("worker leads %s no more", role.name)
            # Not all at the same moment.
            await asyncio.sleep(self._lease / 3 * random.uniform(0.7, 1.0))

    async def _lead(self, role: Role, lease: Lease) -> None:
        """Do its step when it is due; return when the lease is lost, or cannot be renewed in time."""
        step: asyncio.Task[None] | None = None
        due = renew_at = monotonic()
        renew_at += self._lease / 3
        try:
            while lease.is_live:
                now = monotonic()
                if now >= renew_at:
                    renewed, renew_at = await self._renew(role, lease), monotonic() + self._lease / 3
                    if renewed is None:
                        return
                    lease = self._held[role.name] = renewed
                if step is None and now >= due:
                    due = now + role.every
                    step = asyncio.ensure_future(self._step(role, lease.fence))
                pause = max(min(renew_at, lease.ends_at, due if step is None else renew_at) - monotonic(), 0.0)
                if step is None:
                    await asyncio.sleep(pause)
                else:
                    await asyncio.wait({step}, timeout=pause)
                    step = None if step.done() else step
        finally:
            if step is not None:
                step.cancel()
                await asyncio.gather(step, return_exceptions=True)

    async def _step(self, role: Role, fence: int) -> None:
        try:
            await role.step(fence)
        except StoreError as error:
            INTERNAL.warning("role %s waits for the store: %s", role.name, error)
        except Exception:
            INTERNAL.exception("a step of role %s failed; it goes on", role.name)

    async def _ask(self, role: Role) -> Lease | None:
        try:
            return await self._obs.leases.acquire(f"role:{role.name}", self._lease)
        except ObservatoryError:
            return None

    async def _renew(self, role: Role, lease: Lease) -> Lease | None:
        """The renewed lease, or the old one while the store is away; None when somebody had it between."""
        try:
            renewed = await self._obs.leases.acquire(f"role:{role.name}", self._lease)
        except ObservatoryError:
            return lease
        # A higher fence: it ran out, and is ours again. What began under the old one is not continued.
        return renewed if renewed is not None and renewed.fence == lease.fence else None

    def _tell(self) -> None:
        if self._obs.presence is not None:
            self._obs.presence.tell(leads=self.leads)
