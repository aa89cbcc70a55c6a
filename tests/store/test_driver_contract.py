"""What we lean on in redis-py, beside its public face. A release that changes it fails here first."""

import asyncio
import inspect

import hiredis
from redis.asyncio.connection import AbstractConnection, Connection, SSLConnection, UnixDomainSocketConnection

from tests.servers import Server


async def test_connected_driver_hands_over_a_quiet_transport(any_server: Server) -> None:
    """After connect() the writer's transport takes another protocol, and no reply of the handshake is left over."""
    connection = UnixDomainSocketConnection(path=str(any_server.path), protocol=3, driver_info=None)
    await connection.connect()  # type: ignore[no-untyped-call]
    assert connection._writer is not None
    assert connection._reader is not None
    assert not connection._reader._buffer  # type: ignore[attr-defined]
    got = asyncio.get_running_loop().create_future()

    class Taking(asyncio.Protocol):
        def data_received(self, data: bytes) -> None:
            if not got.done():
                got.set_result(data)

    transport = connection._writer.transport
    transport.set_protocol(Taking())
    transport.write(hiredis.pack_command(("PING",)))
    assert await got == b"+PONG\r\n"
    transport.abort()
    connection._reader = connection._writer = None


def test_connections_take_our_options() -> None:
    """The options that switch off what the driver does on its own."""
    known = set(inspect.signature(AbstractConnection.__init__).parameters)
    assert {"retry", "protocol", "driver_info", "maint_notifications_config", "socket_timeout"} <= known
    assert issubclass(SSLConnection, Connection)


def test_parser_tells_more_from_false() -> None:
    """A boolean false is a reply; "need more" is what we told it to be."""
    more = object()
    reader = hiredis.Reader(notEnoughData=more)
    reader.feed(b"#f\r\n:1")
    assert reader.gets() is False
    assert reader.gets() is more
