"""The pages, one document each. A page runs and loads only its own content and what its own server sends."""

import base64
import hashlib
import re
from pathlib import Path

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

FOLDER = Path(__file__).parent


def routes() -> list[Route]:
    return [*document("page.html", "/", "/login"), *document("review.html", "/review")]


def document(name: str, *paths: str) -> list[Route]:
    """Return the routes of a document. Its file is read once; its script fetches the content from other routes."""
    shared = {b"/* %b */" % file.encode(): (FOLDER / file).read_bytes() for file in ("shared.css", "shared.js")}
    body = re.sub(rb"/\* shared\.\w+ \*/", lambda match: shared[match[0]], (FOLDER / name).read_bytes())
    headers = {"Content-Security-Policy": policy(body)}

    async def page(request: Request) -> Response:
        return Response(body, media_type="text/html", headers=headers)

    return [Route(path, page, methods=["GET"]) for path in paths]


def policy(document: bytes) -> str:
    """Return a document's Content-Security-Policy: only its own style and script, by hash, and its own server."""
    style, script = (
        _hash(re.search(b"<%b>(.*?)</%b>" % (tag, tag), document, re.DOTALL)) for tag in (b"style", b"script")
    )
    return (
        f"default-src 'none'; style-src {style}; script-src {script}; img-src 'self' data:; connect-src 'self'; "
        "form-action 'self'; base-uri 'none'; frame-ancestors 'none'; require-trusted-types-for 'script'"
    )


def _hash(part: re.Match[bytes] | None) -> str:
    assert part is not None, "the document lacks a style or a script"
    return f"'sha256-{base64.b64encode(hashlib.sha256(part[1]).digest()).decode()}'"
