"""Refusals as JSON: a message, and the name of the error, which for an `EdgeCNNError` is its class."""

from http import HTTPStatus

from starlette.responses import JSONResponse

from edgecnn.errors import BundleError, EdgeCNNError, EngineError, ImageError, ImageTooLargeError

STATUSES: dict[type[EdgeCNNError], int] = {ImageTooLargeError: 413, ImageError: 400, BundleError: 503, EngineError: 503}
"""The HTTP status of each kind of error: the first match counts, and any other error is a 500."""


def refusal(status: int, message: str, code: str = "", **headers: str) -> JSONResponse:
    """Return {"error": message, "code": code}; the code defaults to the status in words, such as "NotFound"."""
    name = code or HTTPStatus(status).phrase.title().replace(" ", "").replace("-", "")
    return JSONResponse(
        {"error": message, "code": name}, status, {key.replace("_", "-"): value for key, value in headers.items()}
    )


def failed(error: EdgeCNNError) -> JSONResponse:
    status = next((status for kind, status in STATUSES.items() if isinstance(error, kind)), 500)
    return refusal(status, str(error), type(error).__name__)
