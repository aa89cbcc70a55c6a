"""Signatures as Standard Webhooks has them: HMAC-SHA256 over id, moment and body."""

import base64
import hmac
from binascii import Error
from hashlib import sha256

from ...errors import ConfigurationError

_PREFIX = "whsec_"


def checked_secrets(said: str, what: str) -> tuple[bytes, ...]:
    """The keys of one or several secrets with blanks between them, "whsec_" and base64. Several sign beside each other, while
    one takes another's place. ConfigurationError, which never shows them."""
    found = []
    for word in said.split():
        try:
            key = base64.b64decode(word.removeprefix(_PREFIX), validate=True)
        except (Error, ValueError):
            key = b""
        if not word.startswith(_PREFIX) or not 16 <= len(key) <= 128:
            raise ConfigurationError(
                f"{what} is not a signing secret", remedy="Write whsec_ and the base64 of 24 to 64 random bytes"
            ) from None
        found.append(key)
    if not found:
        raise ConfigurationError(f"{what} is empty", remedy="Write whsec_ and the base64 of 24 to 64 random bytes")
    return tuple(found)


def signed(keys: tuple[bytes, ...], id: str, seconds: int, body: bytes) -> dict[str, str]:  # noqa: A002 (the word for it)
    """The headers of one attempt. seconds: since 1970, of the attempt: who receives it refuses old ones."""
    text = f"{id}.{seconds}.".encode() + body
    signatures = (base64.b64encode(hmac.digest(key, text, sha256)).decode() for key in keys)
    return {
        "webhook-id": id,
        "webhook-timestamp": str(seconds),
        "webhook-signature": " ".join(f"v1,{one}" for one in signatures),
    }
