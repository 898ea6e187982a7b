"""Keeps pages of other sites away from a server on the reader's own machine.

A browser sends such a page's requests, to any address. What gives them away is `Origin`, the site whose page asks, and,
where that site's name has been made to lead to this machine, `Host`, the name that was asked for.
"""

from __future__ import annotations

from collections.abc import Iterable
from urllib.parse import urlsplit

from starlette.datastructures import Headers, MutableHeaders
from starlette.responses import JSONResponse

LOOPBACK = ("localhost", "127.0.0.1", "::1")
ANY = "*"
HEADERS = {
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Content-Security-Policy": "default-src 'none'; frame-ancestors 'none'",
}


class Protected:
    """An ASGI application that answers its own page and programs, and no page of another site.

    Args:
        app: the application.
        allowed_hosts: names without ports that the server is asked for by; "*" allows all.
    """

    def __init__(self, app, allowed_hosts: Iterable[str]):
        self.app = app
        self.allowed_hosts = frozenset(name.lower() for name in allowed_hosts)

    async def __call__(self, scope, receive, send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return

        async def with_headers(message):
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                for name, value in HEADERS.items():
                    headers.setdefault(name, value)
            await send(message)

        complaint = self._complaint(Headers(scope=scope))
        answer = self.app if complaint is None else JSONResponse({"detail": complaint}, 403)
        await answer(scope, receive, with_headers)

    def _complaint(self, headers: Headers) -> str | None:
        host, origin = headers.get("host", ""), headers.get("origin")
        if ANY not in self.allowed_hosts and _name(f"//{host}") not in self.allowed_hosts:
            return f"Host: expected {' or '.join(sorted(self.allowed_hosts))}, received {host or 'none'}"
        if origin is not None and _place(origin) != host.lower():
            return f"Origin: expected a page of this server, received one of {origin}"
        return None


def _name(url: str) -> str | None:
    """The host of a URL without its port; None where it is no URL."""
    try:
        return urlsplit(url).hostname
    except ValueError:
        return None


def _place(origin: str) -> str | None:
    """Host and port of an origin, as a `Host` header has them."""
    try:
        return urlsplit(origin).netloc.lower()
    except ValueError:
        return None
