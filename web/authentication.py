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
# Wrong passwords that an address may send within so many seconds: enough for typing errors, too few for guessing.
MAX_FAILURES, FAILURE_SECONDS = 20, 60.0


class Authentication:
    """Admits requests with the password, and none from an address that sent too many wrong ones."""

    def __init__(self, password: str) -> None:
        self._password = password
        self._failures: dict[str, list[float]] = {}  # by address: the times of its wrong passwords

    def refused(self, request: Request) -> Response | None:
        """The refusal, or None where the request is admitted."""
        now, address = time.monotonic(), request.client.host if request.client else ""
        self._failures = {
            other: recent
            for other, times in self._failures.items()
            if (recent := [time for time in times if now - time < FAILURE_SECONDS])
        }
        if len(self._failures.get(address, [])) >= MAX_FAILURES:
            return PlainTextResponse("too many wrong passwords", 429, {"Retry-After": str(round(FAILURE_SECONDS))})
        if admitted(request, self._password):
            return None
        if "authorization" in request.headers:  # a browser's first request has no password, and is no failure
            self._failures.setdefault(address, []).append(now)
        return PlainTextResponse("password required", 401, {"WWW-Authenticate": 'Basic realm="crawl2chat"'})


def admitted(request: Request, password: str) -> bool:
    """Whether a request has the password."""
    kind, _, credentials = request.headers.get("authorization", "").partition(" ")
    if kind.lower() != "basic":
        return False
    try:
        _, _, sent = base64.b64decode(credentials, validate=True).partition(b":")
    except binascii.Error:
        return False
    return hmac.compare_digest(sent, password.encode())


def is_loopback(host: str) -> bool:
    """Whether only this machine can connect to an address."""
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
