"""Processes of ours, started together and ended together, without orphans.

Every child holds the reading end of one pipe, the lifeline. When the starter dies, also by SIGKILL, they see its end and stop.
"""

import asyncio
import contextlib
import os
import signal
import socket
import sys
from collections.abc import Mapping, Sequence

import msgspec

from ..errors import ConfigurationError
from ..logs import INTERNAL

READY_TIMEOUT = 30.0
STOP_TIMEOUT = 40.0
_RESTART_AFTER = (0.1, 0.5, 2.0, 5.0)


def url(host: str, port: int) -> str:
    """Of a service; an address with colons stands in brackets."""
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


class Child:
    """One process, and how to start it again."""

    def __init__(self, name: str, arguments: Sequence[str], descriptors: tuple[int, ...]) -> None:
        self.name = name
        self.arguments = arguments
        self.descriptors = descriptors
        self.process: asyncio.subprocess.Process | None = None
        self.restarts = 0

    @property
    def pid(self) -> int:
        return self.process.pid if self.process is not None else 0


class Service(msgspec.Struct, frozen=True):
    """Where one service instance listens."""

    url: str
    listener: socket.socket


class Fleet:
    """Services and workers on one store. instance: the starter's name, if it was given one; each child's begins with it."""

    def __init__(self, environment: Mapping[str, str], instance: str | None = None) -> None:
        self._environment = {**os.environ, **environment}
        self._instance = instance
        self._read_end, self._write_end = os.pipe()
        os.set_inheritable(self._read_end, True)
        self.services: list[Service] = []
        self.children: list[Child] = []
        self._watchers: list[asyncio.Task[None]] = []
        self._stopping = False

    async def start(self, services: int, workers: int, host: str, port: int) -> None:
        """All of them are ready when it returns. ConfigurationError when one does not come up."""
        from ..service.server import listen

        for number in range(services):
            listener = listen(host, port + number if port else 0)
            self.services.append(Service(url(host, listener.getsockname()[1]), listener))
            fd = listener.fileno()
            os.set_inheritable(fd, True)
            self.children.append(Child(f"service {number + 1}", ["serve", "--fd", str(fd)], (fd,)))
        self.children += [Child(f"worker {number + 1}", ["worker"], ()) for number in range(workers)]
        await self.launch(self.children)

    async def launch(self, children: list[Child]) -> None:
        """Start these and keep them running. ConfigurationError when one does not come up."""
        self.children = children
        await asyncio.gather(*(self._launch(child) for child in self.children))
        self._watchers = [asyncio.create_task(self._watch(child)) for child in self.children]

    async def _launch(self, child: Child) -> None:
        child.process = await asyncio.create_subprocess_exec(
            # -P: what lies in the directory where somebody starts us is no part of us.
            *(sys.executable, "-P", "-m", "observatory", *child.arguments, "--lifeline", str(self._read_end)),
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            env=self._environment_of(child),
            pass_fds=(self._read_end, *child.descriptors),
            # Ctrl-C on a terminal goes to the whole group; we pass it on ourselves, in order.
            start_new_session=True,
        )
        if child.process.stdout is None:
            raise ConfigurationError(f"{child.name} has no output")
        try:
            # A process of ours says one line when it is ready, and nothing more.
            async with asyncio.timeout(READY_TIMEOUT):
                said = await child.process.stdout.readline()
        except TimeoutError:
            said = b""
        if not said:
            raise ConfigurationError(f"{child.name} did not start; see the lines above")

    def _environment_of(self, child: Child) -> dict[str, str]:
        """Two processes of one name would be one to the fleet."""
        if self._instance is None:
            return self._environment
        return {**self._environment, "OBSERVATORY_INSTANCE": f"{self._instance}-{child.name.replace(' ', '-')}"}

    async def _watch(self, child: Child) -> None:
        """Start it again when it dies; its listening socket is ours, so callers only wait."""
        while child.process is not None:
            code = await child.process.wait()
            if self._stopping:
                return
            pause = _RESTART_AFTER[min(child.restarts, len(_RESTART_AFTER) - 1)]
            child.restarts += 1
            INTERNAL.warning("%s ended with %d; starting it again in %g s", child.name, code, pause)
            await asyncio.sleep(pause)
            try:
                await self._launch(child)
            except ConfigurationError as error:
                INTERNAL.error("%s", error)

    async def stop(self) -> None:
        """SIGTERM to all, SIGKILL to whoever does not go; none is left when it returns."""
        self._stopping = True
        for watcher in self._watchers:
            watcher.cancel()
        await asyncio.gather(*self._watchers, return_exceptions=True)
        processes = [child.process for child in self.children if child.process is not None]
        for process in processes:
            if process.returncode is None:
                with contextlib.suppress(ProcessLookupError):
                    process.send_signal(signal.SIGTERM)
        try:
            async with asyncio.timeout(STOP_TIMEOUT):
                await asyncio.gather(*(process.wait() for process in processes))
        except TimeoutError:
            for process in processes:
                if process.returncode is None:
                    with contextlib.suppress(ProcessLookupError):
                        process.kill()
            await asyncio.gather(*(process.wait() for process in processes))
        finally:
            os.close(self._write_end)
            os.close(self._read_end)
            for service in self.services:
                service.listener.close()
