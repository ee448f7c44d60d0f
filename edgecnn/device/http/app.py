"""The application: all routes in one list, and the layers around them."""

from collections.abc import Sequence

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.routing import Route
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from edgecnn.device.http import api, openapi, page, review
from edgecnn.device.http.answers import failed, refusal
from edgecnn.device.http.auth import Gate
from edgecnn.device.http.inference import Busy
from edgecnn.device.http.limits import Guard, check_shape
from edgecnn.device.http.site import Site
from edgecnn.errors import EdgeCNNError

HEADERS = (
    (b"cache-control", b"no-store"),
    (b"content-security-policy", b"default-src 'none'; frame-ancestors 'none'"),
    (b"cross-origin-resource-policy", b"same-origin"),
    (b"referrer-policy", b"no-referrer"),
    (b"x-content-type-options", b"nosniff"),
)


def all_routes(site: Site) -> list[Route]:
    return [
        *api.routes(site),
        *site.gate.routes(),
        *page.routes(),
        *review.routes(site.desk),
        *openapi.routes(site),
    ]


def make_app(gate: Gate, routes: Sequence[Route]) -> ASGIApp:
    app = Starlette(
        routes=routes,
        exception_handlers={HTTPException: on_http, EdgeCNNError: on_error, Busy: on_busy, ClientDisconnect: on_gone},
    )
    app.router.redirect_slashes = False
    return Headers(Guard(app, (check_shape, gate.check_host, gate.check_origin, gate.check_token)))


def on_http(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    return refusal(error.status_code, f"{error.detail}.", **dict(error.headers or {}))


def on_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, EdgeCNNError)
    return failed(error)


def on_busy(request: Request, error: Exception) -> Response:
    return refusal(503, "too many images are waiting already.", "Busy", retry_after="1")


def on_gone(request: Request, error: Exception) -> Response:
    return Response(status_code=400)  # nobody reads it


class Headers:
    """Adds HEADERS to every response, except those that the response sets itself."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                own = {name for name, _ in message["headers"]}
                message["headers"] = [*message["headers"], *(item for item in HEADERS if item[0] not in own)]
            await send(message)

        await self._app(scope, receive, with_headers)
