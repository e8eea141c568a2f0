"""HTTP Basic authentication with a rate limit per address."""

from __future__ import annotations

import base64
import binascii
import hmac
import ipaddress
import time

from fastapi import Request, Response
from fastapi.responses import PlainTextResponse

PASSWORD = "CRAWL2CHAT_WEB_PASSWORD"
# Wrong passwords from one address, and for how long they count. A person mistypes a few; 20 a minute guess nothing.
MOST_WRONG, WRONG_SECONDS = 20, 60.0


class Authentication:
    """Admits requests with the password, and none from an address that sent too many wrong ones."""

    def __init__(self, password: str) -> None:
        self._password = password
        self._wrong: dict[str, list[float]] = {}  # address to when

    def refused(self, request: Request) -> Response | None:
        """The refusal, or None where the request is admitted."""
        now, address = time.monotonic(), request.client.host if request.client else ""
        self._wrong = {
            at: recent
            for at, times in self._wrong.items()
            if (recent := [one for one in times if now - one < WRONG_SECONDS])
        }
        if len(self._wrong.get(address, [])) >= MOST_WRONG:
            return PlainTextResponse("too many wrong passwords", 429, {"Retry-After": str(round(WRONG_SECONDS))})
        if admitted(request, self._password):
            return None
        if "authorization" in request.headers:  # a browser first asks without
            self._wrong.setdefault(address, []).append(now)
        return PlainTextResponse("a password, please", 401, {"WWW-Authenticate": 'Basic realm="crawl2chat"'})


def admitted(request: Request, password: str) -> bool:
    """Whether a request bears the password."""
    kind, _, given = request.headers.get("authorization", "").partition(" ")
    if kind.lower() != "basic":
        return False
    try:
        _, _, told = base64.b64decode(given, validate=True).partition(b":")
    except binascii.Error:
        return False
    return hmac.compare_digest(told, password.encode())


def is_loopback(host: str) -> bool:
    """Whether only this machine reaches an address."""
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
