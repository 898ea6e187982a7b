"""The page that shows what is found in an image, and the policy under which a browser runs it."""

from __future__ import annotations

import base64
import hashlib
import importlib.resources
import re

_INLINE = re.compile(r"<(script|style)>(.*?)</\1>", re.DOTALL)


def read_page() -> tuple[str, str]:
    """The page, and its Content-Security-Policy: its own script and style by their hashes, this server's answers."""
    page = importlib.resources.files("multigrid.serving").joinpath("page.html").read_text("utf-8")
    hashes = {kind: _hash(text) for kind, text in _INLINE.findall(page)}
    policy = (
        "default-src 'self'; "
        f"script-src {hashes['script']}; style-src {hashes['style']}; img-src 'self' blob: data:; "
        "object-src 'none'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    )
    return page, policy


def _hash(text: str) -> str:
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"
