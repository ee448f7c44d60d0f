"""Refusals as JSON: what happened, and the name of the error, of `edgecnn.errors` where it is one of those."""

from http import HTTPStatus

from starlette.responses import JSONResponse

from edgecnn.errors import BundleError, EdgeCNNError, EngineError, ImageError, ImageTooLargeError

STATUSES: dict[type[EdgeCNNError], int] = {ImageTooLargeError: 413, ImageError: 400, BundleError: 503, EngineError: 503}
"""The HTTP status of an error, the first that it is one of; 500 for any other."""


def refusal(status: int, message: str, code: str = "", **headers: str) -> JSONResponse:
    """Return {"error": message, "code": code}; the code is by default the status in words, such as "NotFound"."""
    name = code or HTTPStatus(status).phrase.title().replace(" ", "").replace("-", "")
    return JSONResponse(
        {"error": message, "code": name}, status, {key.replace("_", "-"): value for key, value in headers.items()}
    )


def failed(error: EdgeCNNError) -> JSONResponse:
    status = next((status for kind, status in STATUSES.items() if isinstance(error, kind)), 500)
    return refusal(status, str(error), type(error).__name__)
