"""The OpenAPI 3.1 description of the API, at /openapi.json. A test checks it against the routes and their answers."""

from typing import Any

from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from edgecnn import __version__
from edgecnn.device.http.auth import PUBLIC
from edgecnn.device.http.kserve import HEADER
from edgecnn.device.http.site import Site

Schema = dict[str, Any]

JSON, TEXT, JPEG, BYTES = "application/json", "text/plain", "image/jpeg", "application/octet-stream"

TEXT_FIELD: Schema = {"type": "string"}
TEXT_OR_NULL: Schema = {"type": ["string", "null"]}
NUMBER: Schema = {"type": "number"}
SECONDS: Schema = {"type": "number", "description": "Seconds since the epoch."}
OR_NULL: Schema = {"type": ["number", "null"]}
COUNT: Schema = {"type": "integer", "minimum": 0}
SHARE: Schema = {"type": "number", "minimum": 0, "maximum": 1}
TRUTH: Schema = {"type": "boolean"}


def of(name: str) -> Schema:
    return {"$ref": f"#/components/schemas/{name}"}


def or_null(schema: Schema) -> Schema:
    return {"oneOf": [schema, {"type": "null"}]}


def array(items: Schema, **limits: Any) -> Schema:
    return {"type": "array", "items": items, **limits}


def table(optional: tuple[str, ...] = (), **fields: Schema) -> Schema:
    """Return the schema of an object that has these fields and no others."""
    required = [name for name in fields if name not in optional]
    return {"type": "object", "required": required, "additionalProperties": False, "properties": fields}


SCORE = table(("index",), label=TEXT_FIELD, index=COUNT, score=SHARE)
REGION = array(SHARE, minItems=4, maxItems=4)
TENSOR = table(
    ("data", "parameters"), name=TEXT_FIELD, datatype=TEXT_FIELD, shape=array(COUNT), data={"type": "array"},
    parameters={"type": "object"},
)  # fmt: skip

SCHEMAS: dict[str, Schema] = {
    "Error": table(error=TEXT_FIELD, code=TEXT_FIELD),
    "Result": table(
        ("region",), schema={"const": "edgecnn.result/1"}, source=TEXT_FIELD, top=array(SCORE), decision=TEXT_FIELD, reason=TEXT_OR_NULL,
        latency_ms=table(decode=NUMBER, preprocess=NUMBER, infer=NUMBER), model=TEXT_FIELD, model_sha256=TEXT_FIELD, region=REGION,
    ),
    "Scores": table(n=COUNT, histogram=array(SHARE), abstain=OR_NULL, stranger=OR_NULL, since=or_null(SECONDS)),
    "Drift": table(
        bins=array(SHARE) | {"description": "Edges of the histograms' bins; a bin includes its upper edge."},
        today=or_null(of("Scores")), validation=or_null(of("Scores")), accepted=or_null(of("Scores")), accepted_at=or_null(SECONDS),
        days={**COUNT, "description": "Days counted so far; a week of seven can be accepted."}, can_accept=TRUTH,
        alarm=or_null(table(since=SECONDS, message=TEXT_FIELD)), false_alarms_per_month=SHARE,
    ),
    "Update": table(reason=TEXT_OR_NULL, last_good=TEXT_OR_NULL, age_s=OR_NULL)
    | {"description": "The last check for a release: why it failed, if it did, and when the last successful one was."},
    "State": table(
        schema={"const": "edgecnn.state/1"}, time=SECONDS, source=TEXT_OR_NULL, camera={"enum": ["open", "lost", "opening", "none"]},
        camera_since=or_null(SECONDS), camera_message=TEXT_OR_NULL,
        frame=or_null(table(seq=COUNT, ts=SECONDS, width=COUNT, height=COUNT, inference_ms=NUMBER)),
        state=TEXT_OR_NULL | {"description": "A label, abstain, stranger, or null before enough frames were seen."},
        since=or_null(SECONDS), reason=TEXT_OR_NULL, top=array(SCORE), region=or_null(REGION),
        hour=array({"type": "array", "prefixItems": [SECONDS, TEXT_OR_NULL], "items": False})
        | {"description": "Changes of the state in the last hour; the first is the state an hour ago."},
        counts=table(
            frames=COUNT, dropped=COUNT, damaged=COUNT, reconnects=COUNT,
            decisions={"type": "object", "additionalProperties": COUNT},
        ),
        model=table(
            name=TEXT_FIELD, serial=COUNT, sha256=TEXT_FIELD, model_sha256=TEXT_FIELD, labels=array(TEXT_FIELD), shape=array(COUNT),
            engine=TEXT_FIELD, precision=TEXT_FIELD, accuracy=OR_NULL, interval=or_null(array(SHARE, minItems=2, maxItems=2)),
            images={"type": ["integer", "null"]},
        ),
        board=table(temperature_c=OR_NULL, throttled=array(TEXT_FIELD), memory_mib=OR_NULL, uptime_s=OR_NULL, update=or_null(of("Update"))),
        unsure=array(table(name=TEXT_FIELD, ts=SECONDS, guess=TEXT_OR_NULL, reason=TEXT_OR_NULL, score=OR_NULL)),
        drift=or_null(of("Drift")),
    ),
    "Review": table(
        schema={"const": "edgecnn.review/1"}, into=TEXT_OR_NULL, classes=array(TEXT_FIELD),
        next=array(
            table(
                pictures=array(TEXT_FIELD), ts=SECONDS, why={"enum": ["unsure", "stranger", "random"]}, guess=TEXT_OR_NULL, score=OR_NULL,
                reason=TEXT_OR_NULL,
            )
        )
        | {"description": "The next questions: the SHA-256 of similar pictures, and the model's guess for the first, unless random."},
        left=COUNT, unreadable=COUNT, labelled=COUNT, none=COUNT, skipped=COUNT,
        undo={**COUNT, "description": "Number of pictures in the answer that undo would take back."},
        field=TEXT_OR_NULL | {"description": "The accuracy in the field, once the whole random sample is decided."},
    ),
    "ReviewAnswer": table(
        ("pictures", "decision", "label"), reviewer=TEXT_FIELD, pictures=array(TEXT_FIELD), decision={"enum": ["label", "none", "skip"]},
        label=TEXT_FIELD,
    ),
    "Live": table(live=TRUTH),
    "Ready": table(ready=TRUTH),
    "Server": table(name=TEXT_FIELD, version=TEXT_FIELD, extensions=array(TEXT_FIELD)),
    "ModelReady": table(name=TEXT_FIELD, ready=TRUTH),
    "Metadata": table(
        name=TEXT_FIELD, versions=array(TEXT_FIELD), platform=TEXT_FIELD, inputs=array(TENSOR), outputs=array(TENSOR)
    ),
    "InferRequest": {
        "type": "object",
        "required": ["inputs"],
        "properties": {
            "id": TEXT_FIELD, "inputs": array(TENSOR, minItems=1, maxItems=1), "outputs": {"type": "array"},
            "parameters": {"type": "object"},
        },
    },
    "InferAnswer": table(("id",), id=TEXT_FIELD, model_name=TEXT_FIELD, model_version=TEXT_FIELD, outputs=array(TENSOR)),
}  # fmt: skip


def answers(media: str, schema: Schema | None = None, about: str = "Success.", **others: str) -> Schema:
    """Return the responses of an operation: 200 with a body of this type, and refusals by status, such as `s404`."""
    body = {media: {"schema": schema} if schema else {}}
    refused = {"content": {JSON: {"schema": of("Error")}}}
    more = {status.removeprefix("s"): {"description": text, **refused} for status, text in others.items()}
    return {"200": {"description": about, "content": body}, **more, "default": {"description": "Refused.", **refused}}


NO_CAMERA = "There is no camera."
NO_REVIEW = "No pictures are kept."
BINARY = f"Tensor bytes after the JSON; {HEADER} gives the JSON's length."

REVIEWED = answers(
    JSON,
    of("Review"),
    s400="No such picture or class.",
    s404=NO_REVIEW,
    s409="Another page is reviewing, or has given a different answer.",
)

PATHS: dict[str, dict[str, tuple[str, Schema]]] = {
    "/": {"get": ("The page.", answers("text/html"))},
    "/login": {
        "get": ("The page that asks for the token.", answers("text/html")),
        "post": (
            "Exchange the token for a cookie.",
            {"303": {"description": "The cookie."}, **answers(JSON, s401="The token is wrong.", s413="Too long.")},
        ),
    },
    "/v1/state": {"get": ("Everything known about the board and its camera.", answers(JSON, of("State")))},
    "/v1/events": {
        "get": (
            "Server-sent events: data is a line of `edgecnn classify --json`, described by result.schema.json.",
            answers("text/event-stream", TEXT_FIELD),
        )
    },
    "/v1/frame.jpg": {"get": ("The newest picture.", answers(JPEG, s404=NO_CAMERA, s503="No picture arrived."))},
    "/v1/stream.mjpeg": {
        "get": ("An endless stream of pictures.", answers("multipart/x-mixed-replace", s404=NO_CAMERA))
    },
    "/v1/unsure/{name}": {"get": ("An unsure picture that /v1/state lists.", answers(JPEG, s404="No such picture."))},
    "/v1/classify": {
        "post": (
            "Classify the bytes of an image.",
            answers(JSON, of("Result"), s400="Not an image.", s413="Too large.", s503="Too many requests are waiting."),
        )
    },
    "/v1/drift/accept": {
        "post": (
            "Accept the scores of the first week, or of the last, as normal.",
            answers(JSON, of("Drift"), s404=NO_CAMERA, s409="There are fewer than seven days so far."),
        )
    },
    "/review": {"get": ("The page for reviewing kept pictures.", answers("text/html"))},
    "/v1/review": {
        "get": (
            "The next questions. ?reviewer= is an id that the page has made up; &take takes the review over from another page.",
            answers(JSON, of("Review"), s404=NO_REVIEW, s409="Another page is reviewing."),
        )
    },
    "/v1/review/pictures/{sha256}": {"get": ("A kept picture.", answers(JPEG, s404="No such picture."))},
    "/v1/review/answer": {"post": ("Answer. The answer is on disk when this returns.", REVIEWED)},
    "/v1/review/undo": {"post": ("Undo the last answer.", REVIEWED)},
    "/metrics": {"get": ("Metrics for Prometheus.", answers(TEXT, TEXT_FIELD))},
    "/healthz": {"get": ("Whether the server answers.", answers(TEXT, TEXT_FIELD))},
    "/readyz": {
        "get": (
            "Whether a model is loaded and, with a camera, frames arrive.",
            answers(TEXT, TEXT_FIELD) | {"503": {"description": "Not ready.", "content": {TEXT: {}}}},
        )
    },
    "/openapi.json": {"get": ("This document.", answers(JSON, {"type": "object"}))},
    "/v2": {"get": ("The server's name, version and extensions.", answers(JSON, of("Server")))},
    "/v2/health/live": {"get": ("Whether the server answers.", answers(JSON, of("Live")))},
    "/v2/health/ready": {"get": ("Whether a model is loaded.", answers(JSON, of("Ready")))},
}

for base in ("/v2/models/{model}", "/v2/models/{model}/versions/{version}"):
    unknown = "Unknown model or version."
    infer = answers(
        JSON, of("InferAnswer"), s400="Not a valid request.", s404=unknown, s503="Too many requests are waiting."
    )
    infer["200"]["content"][BYTES] = {"schema": {"description": BINARY}}
    PATHS[base] = {"get": ("The model's tensors.", answers(JSON, of("Metadata"), s404=unknown))}
    PATHS[f"{base}/ready"] = {"get": ("Whether the model is loaded.", answers(JSON, of("ModelReady"), s404=unknown))}
    PATHS[f"{base}/infer"] = {"post": ("Scores of an image that is already resized.", infer)}

BODIES: dict[str, Schema] = {
    "/v1/classify": {JPEG: {}, "image/png": {}, BYTES: {}},
    "/login": {"application/x-www-form-urlencoded": {"schema": table(token=TEXT_FIELD)}},
    **{path: {JSON: {"schema": of("ReviewAnswer")}} for path in ("/v1/review/answer", "/v1/review/undo")},
    **{
        path: {JSON: {"schema": of("InferRequest")}, BYTES: {"schema": {"description": BINARY}}}
        for path in PATHS
        if path.endswith("/infer")
    },
}


def operation(path: str, method: str, about: str, responses: Schema) -> Schema:
    """Return an operation with the parameters of its path."""
    names = [part[1:-1] for part in path.split("/") if part.startswith("{")]
    found: Schema = {"operationId": f"{method} {path}", "summary": about, "responses": responses}
    if names:
        found["parameters"] = [{"name": name, "in": "path", "required": True, "schema": TEXT_FIELD} for name in names]
    if path in BODIES and method == "post":
        found["requestBody"] = {"required": True, "content": BODIES[path]}
    if path in PUBLIC:
        found["security"] = []
    return found


def document(*, token: bool) -> Schema:
    """Return the document; `token` is whether the server needs one."""
    schemes = {
        "bearer": {"type": "http", "scheme": "bearer"},
        "basic": {"type": "http", "scheme": "basic", "description": "The token as the password, with any user name."},
    }
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "edgecnn",
            "version": __version__,
            "summary": "Classification of a camera's frames, and of single images.",
        },
        "servers": [{"url": "."}],
        "security": [{name: []} for name in schemes] if token else [],
        "paths": {
            path: {method: operation(path, method, *described) for method, described in methods.items()}
            for path, methods in PATHS.items()
        },
        "components": {"schemas": SCHEMAS, "securitySchemes": schemes},
    }


def routes(site: Site) -> list[Route]:
    async def openapi(request: Request) -> Response:
        return JSONResponse(document(token=site.board.opening.token is not None))

    return [Route("/openapi.json", openapi)]
