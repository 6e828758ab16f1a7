"""Who may ask, and how much: keys by name, of which a file holds the digests alone.

A key is 256 random bits, so that its SHA-256 tells nothing of it and needs no salt. Whoever can read the file can ask
nothing with it; whoever can write it lets himself in, so it belongs to its owner alone. It is read again when it has
changed: a key that is taken out of it opens nothing from then on.
"""

import hmac
import json
import math
import secrets
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from hashlib import sha256
from pathlib import Path
from typing import Any

from fastapi import HTTPException
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from lissom.errors import DataError
from lissom.files import replacing

PREFIX = "lissom-"  # by which a key is known for one where it should not be, such as in a repository
MINUTE = 60.0
LOOK = 1.0  # seconds between looks whether the file has changed
OWNER = 0o600


class Key(BaseModel):
    """A key as the file holds it; limits that are not given are none. Of two that wait, the lower priority is first."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: str = Field(min_length=1, max_length=128)
    sha256: str = Field(pattern="^[0-9a-f]{64}$")
    requests_per_minute: float | None = Field(None, gt=0)
    tokens_per_minute: float | None = Field(None, gt=0)
    priority: int = Field(0, ge=-100, le=100)


@dataclass(slots=True, kw_only=True)
class Bucket:
    """So much in a minute, of which all may be taken at once; what is taken beyond it has to be waited for."""

    per_minute: float
    clock: Callable[[], float] = time.monotonic
    left: float = field(init=False)
    seen: float = field(init=False)

    def __post_init__(self) -> None:
        self.left, self.seen = self.per_minute, self.clock()

    def wait(self, amount: float) -> float:
        """Seconds until there is so much; 0 when there is. What is more than a minute's is there when a minute's is."""
        self._fill()
        return max(min(amount, self.per_minute) - self.left, 0.0) * MINUTE / self.per_minute

    def take(self, amount: float) -> None:
        """Take so much, also where it is not there yet."""
        self._fill()
        self.left -= amount

    def _fill(self) -> None:
        now = self.clock()
        self.left = min(self.left + (now - self.seen) * self.per_minute / MINUTE, self.per_minute)
        self.seen = now


@dataclass(frozen=True, slots=True, kw_only=True)
class Caller:
    """Somebody who may ask, under the name of the key that he has."""

    name: str = ""
    priority: int = 0
    requests: Bucket | None = None
    tokens: Bucket | None = None

    def knock(self) -> None:
        """One request more.

        Raises:
            HTTPException: 429, and when to try again: too many have come, or all of them together took too many tokens.
        """
        for bucket, what in ((self.requests, "requests"), (self.tokens, "tokens")):
            if bucket is None or not (late := bucket.wait(1)):
                continue
            again = {"Retry-After": str(math.ceil(late))}
            limit = f"{bucket.per_minute:g} {what} a minute"
            raise HTTPException(429, f"the key allows {limit}; try again in {again['Retry-After']} seconds", again)
        if self.requests is not None:
            self.requests.take(1)

    def spend(self, tokens: int) -> None:
        """So many tokens were read or written for a request."""
        if self.tokens is not None:
            self.tokens.take(tokens)


ANYBODY = Caller()


class Keys:
    """The keys that open a server: those of a file, and one that is given by itself.

    Raises:
        DataError: the file is none of keys.
    """

    def __init__(self, single: str | None, file: Path | None) -> None:
        self._single = () if single is None else ((sha256(single.encode()).digest(), ANYBODY),)
        self._file = file
        self._callers: tuple[tuple[bytes, Caller], ...] = ()
        self._stamp, self._looked = None if file is None else stamp(file), time.monotonic()
        if file is not None:
            self._callers = tuple(map(opened, read_keys(file)))

    @property
    def needed(self) -> bool:
        """Whether it needs a key to come in."""
        return bool(self._single) or self._file is not None

    def caller(self, given: bytes) -> Caller | None:
        """Who has this key. All digests are compared, in constant time, so that nothing of any key leaks."""
        self._look()
        digest, found = sha256(given).digest(), None
        for known, caller in (*self._single, *self._callers):
            if hmac.compare_digest(digest, known):
                found = caller
        return found

    def _look(self) -> None:
        """Read the file again if it has changed; one that is damaged leaves all as it was, but one that is gone."""
        if self._file is None or time.monotonic() - self._looked < LOOK:
            return
        self._looked = time.monotonic()
        if (found := stamp(self._file)) == self._stamp:
            return
        self._stamp = found
        before = dict(self._callers)
        try:
            new = dict(map(opened, read_keys(self._file))) if found is not None else {}
        except DataError:
            return
        kept = {digest: caller for digest, caller in before.items() if same(caller, new.get(digest))}
        self._callers = tuple({**new, **kept}.items())


def stamp(file: Path) -> tuple[int, int] | None:
    """What changes when a file does; None where there is none."""
    try:
        found = file.stat()
    except OSError:
        return None
    return found.st_mtime_ns, found.st_size


def opened(key: Key) -> tuple[bytes, Caller]:
    """The digest of a key, and who has it."""
    requests, tokens = (
        None if limit is None else Bucket(per_minute=limit)
        for limit in (key.requests_per_minute, key.tokens_per_minute)
    )
    return bytes.fromhex(key.sha256), Caller(name=key.name, priority=key.priority, requests=requests, tokens=tokens)


def same(caller: Caller, other: Caller | None) -> bool:
    """Whether a caller may do as much as another, so that what it has used still counts."""
    return other is not None and limits(caller) == limits(other)


def limits(caller: Caller) -> tuple[Any, ...]:
    """What a caller may do."""
    return (
        caller.name,
        caller.priority,
        *(bucket and bucket.per_minute for bucket in (caller.requests, caller.tokens)),
    )


def read_keys(file: Path) -> list[Key]:
    """The keys of a file.

    Raises:
        DataError: it cannot be read, or holds something else.
    """
    try:
        found = [Key.model_validate(one) for one in json.loads(file.read_text(encoding="utf-8"))["keys"]]
    except ValidationError as error:
        fault = error.errors()[0]
        raise DataError(f"{file}: {'.'.join(map(str, fault['loc']))}: {fault['msg']}") from None
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DataError(f"{file} holds no keys ({error}); make it with lissom keys {file} --add NAME") from None
    if len({key.name for key in found}) < len(found):
        raise DataError(f"{file}: two keys have the same name; give each its own")
    return found


def add_key(file: Path, name: str, **limits: Any) -> str:
    """A new key of that name in the file, which is made if there is none; the key itself is kept nowhere.

    Raises:
        DataError: there is one of that name, or a limit is not possible.
    """
    keys = read_keys(file) if file.exists() else []
    if any(key.name == name for key in keys):
        raise DataError(f"{file} has a key {name!r}; remove it first, or choose another name")
    secret = PREFIX + secrets.token_urlsafe(32)
    try:
        new = Key(name=name, sha256=sha256(secret.encode()).hexdigest(), **limits)
    except ValidationError as error:
        fault = error.errors()[0]
        raise DataError(f"{'.'.join(map(str, fault['loc']))}: {fault['msg']}") from None
    write_keys(file, [*keys, new])
    return secret


def remove_key(file: Path, name: str) -> None:
    """Take a key out of the file.

    Raises:
        DataError: there is none of that name.
    """
    keys = read_keys(file)
    left = [key for key in keys if key.name != name]
    if len(left) == len(keys):
        possible = ", ".join(key.name for key in keys) or "none"
        raise DataError(f"{file} has no key {name!r}; possible are {possible}")
    write_keys(file, left)


def write_keys(file: Path, keys: list[Key]) -> None:
    """Keys to a file that its owner alone can read."""
    with replacing(file) as new:
        new.touch(OWNER)
        new.write_text(json.dumps({"keys": [key.model_dump(exclude_none=True) for key in keys]}, indent=1) + "\n")
