"""The site key: 32 secret bytes outside the database, from which every other key of the node is derived.

Whoever knows it can predict the noise and rewrite the ledger. It is readable by the node's user only, and its backup
does not belong beside a copy of the ledger.
"""

from __future__ import annotations

import hashlib
import hmac
import os
import secrets
from dataclasses import dataclass
from pathlib import Path

from dicomguard.errors import ConfigError

_BYTES = 32


@dataclass(frozen=True, slots=True, repr=False)
class SiteKey:
    """Never printed. `for_purpose` derives one key for one use, so that no use can betray another."""

    _secret: bytes

    def for_purpose(self, purpose: str) -> bytes:
        """32 bytes: HMAC-SHA256 of the purpose under the site key."""
        return hmac.new(self._secret, purpose.encode(), hashlib.sha256).digest()

    @classmethod
    def fixed(cls, phrase: str) -> SiteKey:
        """A printed key, for the demo and for tests; anybody who can read can predict its noise."""
        return cls(hashlib.sha256(phrase.encode()).digest())

    def save(self, path: Path) -> None:
        """Write the key where none is yet. Raises FileExistsError."""
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        # Complete before it is visible: two parts that start at once must never read half a key.
        part = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
        descriptor = os.open(part, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with os.fdopen(descriptor, "w") as file:
            file.write(self._secret.hex() + "\n")
            file.flush()
            os.fsync(file.fileno())
        try:
            os.link(part, path)
        finally:
            part.unlink()


def load_or_create(path: Path) -> SiteKey:
    """The site's key, made at the first start. Raises ConfigError where it cannot be read, or others can read it."""
    try:
        if not path.exists():
            SiteKey(secrets.token_bytes(_BYTES)).save(path)
    except FileExistsError:
        pass  # another part of the node was faster
    except OSError as error:
        raise ConfigError(f"The site key {path} cannot be made: {error.strerror}.") from error
    try:
        mode = path.stat().st_mode
        secret = bytes.fromhex(path.read_text("ascii").strip())
    except (OSError, ValueError) as error:
        raise ConfigError(
            f"The site key {path} cannot be read: {error}.",
            advice="Restore it from the backup; without it old decisions can neither be verified nor reproduced.",
        ) from error
    if mode & 0o077:
        raise ConfigError(f"The site key {path} can be read by others.", advice=f"chmod 600 {path}")
    if len(secret) != _BYTES:
        raise ConfigError(f"The site key {path} has {len(secret)} bytes, not {_BYTES}.", advice="Restore the backup.")
    return SiteKey(secret)
