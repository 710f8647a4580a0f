"""Who may ask a served model, and how much: API keys, a rate for each, limits."""

import hashlib
import hmac
import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from ftdocs.errors import InputError

SHORTEST_KEY = 16  # characters


@dataclass(frozen=True)
class Limits:
    """What one client may ask, and all together.

    Attributes:
        prompt_tokens: of a conversation, as the model's chat template writes it.
        max_tokens: of an answer; more is refused, and an answer for which nothing is asked ends there.
        per_minute: requests of a key in a minute, as many at once; 0 is no limit.
        slots: requests that the model works on together.
        queue: requests that wait for a slot; one more is refused.
        seconds: of a request, waiting included.
        body_bytes: of a request.
    """

    prompt_tokens: int
    max_tokens: int = 512
    per_minute: int = 120
    slots: int = 16
    queue: int = 32
    seconds: float = 120.0
    body_bytes: int = 1_000_000


class Keys:
    """API keys, kept as digests; none at all lets everybody in.

    Args:
        keys: the keys as their owners write them.

    Raises:
        InputError: a key is shorter than 16 characters; its place is said and the key is not.
    """

    def __init__(self, keys: list[str]):
        for place, key in enumerate(keys, 1):
            if len(key) < SHORTEST_KEY:
                raise InputError(
                    f"API key {place}: has {len(key)} characters, and {SHORTEST_KEY} are the least; make one with:"
                    ' python -c "import secrets; print(secrets.token_urlsafe(32))"'
                )
        self.digests = [hashlib.sha256(key.encode()).digest() for key in keys]

    def __bool__(self) -> bool:
        return bool(self.digests)

    def place(self, given: str) -> int | None:
        """Which key it is, from 0; None if it is none. Takes as long for a wrong key as for a right one."""
        digest, found = hashlib.sha256(given.encode()).digest(), None
        for place, known in enumerate(self.digests):
            if hmac.compare_digest(digest, known):
                found = place
        return found


def read_keys(file: Path | None) -> Keys:
    """The keys in ``file``, one a line or after ``#`` a remark, and those in ``$FTDOCS_API_KEY``, separated by commas.

    Raises:
        InputError: the file cannot be read, is empty, or other users of the machine may read it; a key is too short.
    """
    keys = [key.strip() for key in os.environ.get("FTDOCS_API_KEY", "").split(",") if key.strip()]
    if file is not None:
        try:
            lines = file.read_text(encoding="utf-8-sig").splitlines()
            mode = file.stat().st_mode
        except (OSError, UnicodeDecodeError):
            raise InputError(f"{file}: no such file of keys, or it cannot be read; one key a line") from None
        if os.name == "posix" and mode & 0o077:
            raise InputError(f"{file}: other users of this machine may read it; chmod 600 {file}")
        found = [key for line in lines if (key := line.strip()) and not key.startswith("#")]
        if not found:
            raise InputError(f"{file}: has no key; write one a line")
        keys += found
    return Keys(keys)


class Bucket:
    """A token bucket: ``per_minute`` requests at once, and as many again in a minute, one after the other."""

    def __init__(self, per_minute: int, clock: Callable[[], float] = time.monotonic):
        self.size, self.rate, self.clock = float(per_minute), per_minute / 60, clock
        self.left, self.then = self.size, clock()

    def take(self) -> float:
        """Take one; 0 where there was one, else the seconds until there is."""
        now = self.clock()
        self.left, self.then = min(self.size, self.left + (now - self.then) * self.rate), now
        if self.left < 1:
            return (1 - self.left) / self.rate
        self.left -= 1
        return 0.0
