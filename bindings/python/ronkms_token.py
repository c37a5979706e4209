"""Narrow a capability token offline, with the standard library alone.

    from ronkms_token import attenuate

    narrow = attenuate(token, "scope=kms:sign", "exp=1900000000")

Whoever has a token can narrow it: this needs no key, no server and no library
of ron-kms. The format and the caveats are those of docs/spec/token.md. What
comes out allows at most what went in; whether the token was good in the first
place only a server can tell.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
import re
from typing import List, NamedTuple, Tuple

__all__ = ["attenuate", "caveats", "Invalid"]

MAX_TOKEN_BYTES = 4096
MAX_CAVEATS = 32

_LOCATION = b"ron-kms"
_MAX_SECONDS = 253402300799
_SCOPES = "attest audit create derive destroy read rotate sign unwrap verify wrap".split()

# \Z, not $: a line feed at the end is no part of a value.
_LABEL = r"(?!.*::)[A-Za-z0-9](?:[A-Za-z0-9._:-]{0,253}[A-Za-z0-9._-])?"
_ALG = r"[a-z0-9][a-z0-9+-]{0,63}"
_UUID = r"[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}"
_IDENTIFIER = re.compile(r"v2:[a-z0-9-]{1,32}:([1-9][0-9]{0,11}):[0-9a-f]{32}\Z", re.ASCII)


class Invalid(ValueError):
    """A token or a caveat that is not well-formed. It repeats nothing of the token."""


def attenuate(token: str, *caveats: str) -> str:
    """Return the token with further caveats, at least one, each "name=value"."""
    if not caveats:
        # Most likely a slip, and its price is handing on the full power.
        raise Invalid("no caveat given")
    identifier, texts, tag = _parse(token)
    for text in caveats:
        _check(text)
        encoded = text.encode("ascii")
        tag = hmac.new(tag, encoded, hashlib.sha256).digest()
        texts.append(encoded)
    if len(texts) > MAX_CAVEATS:
        raise Invalid(f"more than {MAX_CAVEATS} caveats")
    narrow = _encode(identifier, texts, tag)
    if len(narrow) > MAX_TOKEN_BYTES:
        raise Invalid(f"longer than {MAX_TOKEN_BYTES} bytes")
    return narrow


def caveats(token: str) -> List[str]:
    """Return what the token says about itself. Nothing of it is verified: it is to read, not to decide on."""
    return [text.decode("utf-8", "backslashreplace") for text in _parse(token)[1]]


class _Parts(NamedTuple):
    identifier: bytes
    caveats: List[bytes]
    tag: bytes


def _parse(token: str) -> _Parts:
    """Read a token in its one spelling (docs/spec/token.md, section 1)."""
    if not isinstance(token, str) or not 0 < len(token) <= MAX_TOKEN_BYTES:
        raise Invalid("not a token")
    try:
        data = base64.urlsafe_b64decode(token.encode("ascii") + b"=" * (-len(token) % 4))
    except (UnicodeEncodeError, binascii.Error):
        raise Invalid("not a token") from None
    try:
        identifier, texts, tag = _read(data)
    except IndexError:
        raise Invalid("not a token") from None
    # What is not the same text again is another spelling.
    if _encode(identifier, texts, tag) != token or len(tag) != 32 or len(texts) > MAX_CAVEATS:
        raise Invalid("not a token")
    match = _IDENTIFIER.match(identifier.decode("latin-1"))
    if match is None or int(match.group(1)) > _MAX_SECONDS:
        raise Invalid("not a token")
    return _Parts(identifier, texts, tag)


def _read(data: bytes) -> Tuple[bytes, List[bytes], bytes]:
    """Read the macaroon V2 binary format; IndexError where it is not."""
    at = 1

    def varint() -> int:
        nonlocal at
        n = shift = 0
        while True:
            byte = data[at]
            at += 1
            n |= (byte & 0x7F) << shift
            if byte < 0x80:
                return n
            shift += 7
            if shift > 28:
                raise IndexError

    def field(kind: int) -> bytes:
        nonlocal at
        if varint() != kind:
            raise IndexError
        n = varint()
        value = data[at : at + n]
        if len(value) != n:
            raise IndexError
        at += n
        return value

    def end() -> None:
        nonlocal at
        if data[at] != 0:
            raise IndexError
        at += 1

    if data[0] != 2 or field(1) != _LOCATION:
        raise IndexError
    identifier = field(2)
    end()
    texts = []
    while data[at] != 0:
        texts.append(field(2))
        end()
    end()
    return identifier, texts, field(6)


def _encode(identifier: bytes, texts: List[bytes], tag: bytes) -> str:
    def field(kind: int, value: bytes) -> bytes:
        out, n = bytearray([kind]), len(value)
        while n >= 0x80:
            out.append(n & 0x7F | 0x80)
            n >>= 7
        out.append(n)
        return bytes(out) + value

    data = b"\x02" + field(1, _LOCATION) + field(2, identifier) + b"\0"
    data += b"".join(field(2, text) + b"\0" for text in texts) + b"\0" + field(6, tag)
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode("ascii")


def _check(text: str) -> None:
    """Check one caveat (docs/spec/token.md, section 3)."""
    if not isinstance(text, str):
        raise Invalid("a caveat is text")
    name, equals, value = text.partition("=")
    check = _CAVEATS.get(name)
    if not equals or check is None or not check(value):
        raise Invalid("not a caveat in its one spelling")


def _matches(pattern: str):
    compiled = re.compile("(?:" + pattern + r")\Z", re.ASCII)
    return lambda value: compiled.match(value) is not None


def _number(low: int, high: int):
    digits = _matches("0|[1-9][0-9]{0,18}")
    return lambda value: digits(value) and low <= int(value) <= high


def _ascending(valid):
    def check(value: str) -> bool:
        names = value.split(",")
        return all(map(valid, names)) and all(a < b for a, b in zip(names, names[1:]))

    return check


def _rate(value: str) -> bool:
    per_second, slash, burst = value.partition("/")
    valid = _number(1, 1_000_000)
    return slash == "/" and valid(per_second) and valid(burst)


def _kid_prefix(value: str) -> bool:
    key, hash_, version = value.partition("#")
    segments = key.split("/")
    if not all(valid(s) for valid, s in zip(map(_matches, (_LABEL, _LABEL, _ALG, _UUID)), segments)):
        return False
    if not hash_:
        return len(segments) <= 4
    return len(segments) == 4 and version[:1] == "v" and _number(1, 2**32 - 1)(version[1:])


_digest = _matches("[0-9a-f]{64}")
_CAVEATS = {
    "alg": _ascending(_matches(_ALG)),
    "aud": _matches("[!-~]{1,255}"),
    "client-key": _digest,
    "exp": _number(1, _MAX_SECONDS),
    "kid-prefix": _kid_prefix,
    "max-bytes": _number(1, 2**30),
    "nbf": _number(1, _MAX_SECONDS),
    "payload-b3": _digest,
    "peer-uid": _number(0, 2**32 - 2),
    "purpose-prefix": _matches(_LABEL),
    "rate": _rate,
    "scope": _ascending(_matches("kms:(?:" + "|".join(_SCOPES) + ")")),
    "tenant": _matches(_LABEL),
    "verb": _ascending(_matches("[a-z][a-z0-9_]{0,31}")),
}
