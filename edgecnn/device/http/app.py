"""The application: all routes in one list."""

from starlette.applications import Starlette
from starlette.responses import PlainTextResponse
from starlette.routing import Route
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from edgecnn.device.http import api
from edgecnn.device.http.site import Site

HEADERS = (
    (b"cache-control", b"no-store"),
    (b"content-security-policy", b"default-src 'none'; frame-ancestors 'none'"),
    (b"cross-origin-resource-policy", b"same-origin"),
    (b"referrer-policy", b"no-referrer"),
    (b"x-content-type-options", b"nosniff"),
)


def make_app(site: Site) -> ASGIApp:
    routes = [
        *api.routes(site),
        Route("/", lambda request: PlainTextResponse("edgecnn\n")),  # page.routes(site)
        # metrics.routes(site), kserve.routes(site), openapi.routes(site)
    ]
    return Headers(Starlette(routes=routes))


class Headers:
    """Adds HEADERS to every answer that does not have its own."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                own = {name for name, _ in message["headers"]}
                message["headers"] = [*message["headers"], *(item for item in HEADERS if item[0] not in own)]
            await send(message)

        await self._app(scope, receive, with_headers)
