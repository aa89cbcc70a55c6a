"""What runs beside the user's code: periodic jobs under one supervisor task, never in a task group around somebody's body."""

import asyncio
import contextlib
from collections.abc import Awaitable, Callable
from typing import NamedTuple

from .errors import StoreError
from .logs import INTERNAL


class Job(NamedTuple):
    """Something done again and again, `every` seconds."""

    name: str
    every: float
    run: Callable[[], Awaitable[object]]


class Background:
    """Runs jobs until stopped. A failing job is logged and goes on; it never takes another, or its user, down."""

    def __init__(self, jobs: tuple[Job, ...]) -> None:
        self._jobs = jobs
        self._supervisor: asyncio.Task[None] | None = None
        self._failing: set[str] = set()

    @property
    def store_is_away(self) -> bool:
        """True from the first job that the store failed until none fails any more."""
        return bool(self._failing)

    def start(self) -> None:
        self._supervisor = asyncio.get_running_loop().create_task(self._supervise(), name="observatory background")

    async def stop(self) -> None:
        """Every job is at rest when it returns."""
        supervisor, self._supervisor = self._supervisor, None
        if supervisor is not None:
            supervisor.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await asyncio.shield(asyncio.gather(supervisor, return_exceptions=True))

    async def _supervise(self) -> None:
        async with asyncio.TaskGroup() as group:
            for job in self._jobs:
                group.create_task(self._repeat(job), name=f"observatory {job.name}")

    async def _repeat(self, job: Job) -> None:
        while True:
            await asyncio.sleep(job.every)
            try:
                await job.run()
            except StoreError as error:
                self.note(job.name, error)
            except Exception:
                INTERNAL.exception("background job %s failed; it goes on", job.name)
            else:
                self.note(job.name, None)

    def note(self, job: str, error: StoreError | None) -> None:
        """One line when the store goes away, one when it is back."""
        was_away = self.store_is_away
        if error is not None:
            self._failing.add(job)
            if not was_away:
                INTERNAL.error("store away: %s", error)
        else:
            self._failing.discard(job)
            if was_away and not self._failing:
                INTERNAL.info("store back")
