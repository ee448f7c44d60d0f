"""The OpenAPI 3.1 description of the API, at /openapi.json. A test checks the file against the routes and their answers."""

import json
from pathlib import Path

from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from edgecnn import __version__
from edgecnn.device.http.site import Site

FILE = Path(__file__).with_name("openapi.json")


def routes(site: Site) -> list[Route]:
    async def openapi(request: Request) -> Response:
        document = json.loads(FILE.read_bytes())
        document["info"]["version"] = __version__
        schemes = document["components"]["securitySchemes"]
        needs_token = site.board.opening.token is not None
        document["security"] = [{name: []} for name in schemes] if needs_token else []
        return JSONResponse(document)

    return [Route("/openapi.json", openapi)]
