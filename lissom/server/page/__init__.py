"""The page at `/`: one file, which asks the server's own routes and nobody else.

It holds no secret, so it needs no key; what it shows does. What may run in it and whom it may ask is said in its
headers, by the digests of its own code.
"""

import base64
from functools import cache
from hashlib import sha256
from pathlib import Path

from fastapi import Response

HERE = Path(__file__).parent


async def shown() -> Response:
    """The page."""
    text, policy = written()
    headers = {"Content-Security-Policy": policy, "X-Content-Type-Options": "nosniff", "Referrer-Policy": "no-referrer"}
    return Response(text, headers=headers, media_type="text/html")


@cache
def written() -> tuple[str, str]:
    """The page with its style and its code in it, and the policy that lets through these alone."""
    style, code = ((HERE / name).read_text(encoding="utf-8") for name in ("page.css", "page.js"))
    page = (HERE / "page.html").read_text(encoding="utf-8").replace("/*css*/", style).replace("/*js*/", code)
    policy = (
        f"default-src 'none'; style-src {digest(style)}; script-src {digest(code)}; connect-src 'self'; img-src data:; "
        "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    )
    return page, policy


def digest(text: str) -> str:
    """A text as a policy names it."""
    return f"'sha256-{base64.b64encode(sha256(text.encode()).digest()).decode()}'"
