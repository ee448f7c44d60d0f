"""Who may send a request, and how much, also through proxies."""

import asyncio
import base64
import hashlib
import json
import os
import re
import socket
import ssl
import subprocess
import urllib.error
import urllib.request
from types import SimpleNamespace

import pytest

pytest.importorskip("starlette", reason="the server needs the http extra")

import httpx
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from edgecnn.device.address import open_listener
from edgecnn.device.http import access
from edgecnn.device.http import routes as page
from edgecnn.device.http.access import Guard, check_shape
from edgecnn.device.http.routes import make_app
from edgecnn.device.stream.settings import Http

TOKEN = "correct-horse-battery-staple"


def test_a_login_lasts_thirty_days_and_leads_back_to_the_page(monkeypatch):
    now = [1_800_000_000.9]
    monkeypatch.setattr(access, "time", SimpleNamespace(time=lambda: now[0]))

    def ask(method, path, token=TOKEN, **more):
        gate = access.AccessControl(token, ("cam.example",), 8080)
        routes = [
            *gate.routes(),
            *page.document("page.html", "/", "/login"),
            *page.document("review.html", "/review"),
            Route("/v1/state", lambda request: Response("secret")),
        ]

        async def request():
            transport = httpx.ASGITransport(make_app(gate, routes))
            async with httpx.AsyncClient(transport=transport, base_url="http://127.0.0.1:8080") as client:
                return await client.request(method, path, **more)

        return asyncio.run(request())

    form, html = {"content": f"token=%20{TOKEN}%0A"}, {"headers": {"accept": "text/html"}}
    answer = ask("POST", "/login", **form)
    assert answer.status_code == 303 and "secure" not in answer.headers["set-cookie"].lower()
    (cookie,) = answer.cookies.items()
    assert cookie[0] == "edgecnn-8080", "another port of this host has its own"
    sent = {"headers": {"cookie": "=".join(cookie)}}
    days_s = 30 * 24 * 3600
    for now[0], status in ((1_800_000_000.9 + days_s - 1, 200), (1_800_000_001.0 + days_s, 401)):
        assert ask("GET", "/v1/state", **sent).status_code == status
    now[0] = 1_800_000_000.9
    assert ask("GET", "/v1/state", TOKEN + "x", **sent).status_code == 401, "another token logs everybody out"
    encrypted = ask("POST", "/login", headers={"origin": "https://cam.example"}, **form)
    assert "secure" in encrypted.headers["set-cookie"].lower()
    for size, status in ((4096, 401), (4097, 413)):
        assert ask("POST", "/login", content="token=".ljust(size, "x")).status_code == status
    places = {path: ask("GET", path, **html).headers.get("location") for path in ("/", "/review", "/v1/state")}
    assert places == {"/": "/login?to=", "/review": "/login?to=review", "/v1/state": None}
    assert ask("GET", "/").status_code == ask("GET", "/v1/state", **html).status_code == 401
    open_to_all = ask("POST", "/login", None, content="")
    assert open_to_all.status_code == 303 and "set-cookie" not in open_to_all.headers
    for path in ("/", "/review"):
        answer = ask("GET", path, None)
        rules = dict(rule.strip().split(" ", 1) for rule in answer.headers["content-security-policy"].split(";"))
        for kind in ("script", "style"):
            (own,) = re.findall(f"<{kind}>(.*?)</{kind}>", answer.text, re.DOTALL)
            hashed = base64.b64encode(hashlib.sha256(own.encode()).digest()).decode()
            assert rules[f"{kind}-src"] == f"'sha256-{hashed}'", "the browser runs nothing else"
        assert rules["default-src"] == "'none'" and "const percent" in answer.text and "/* shared" not in answer.text


def test_a_port_that_is_taken_is_a_usage_error(edgecnn):
    door = open_listener(Http(address="0"))
    with door.listener:
        result = edgecnn("classify", "synthetic:8x8?frames=1", "--http", door.address[1])
    assert result.code == 2 and "Address already in use" in result.err


def basic(text):
    return f"Basic {base64.b64encode(text.encode()).decode()}"


def test_the_token_is_accepted_in_three_ways(guarded):
    for authorization in (f"Bearer {TOKEN}", f"bearer {TOKEN}", basic(f"home:{TOKEN}"), basic(f":{TOKEN}")):
        assert guarded.ask("/v1/state", authorization=authorization)[0] == 200, authorization
    wrong = (
        "", "Bearer", f"Bearer {TOKEN[:-1]}", f"Bearer {TOKEN}x", f"Basic {TOKEN}", basic(TOKEN), basic(f"{TOKEN}:"), f"Token {TOKEN}",
        f"Bearer {TOKEN.upper()}", "Bearer \xff", "Basic \xff",
    )  # fmt: skip
    for authorization in wrong:
        status, headers, body = guarded.ask("/v1/state", authorization=authorization)
        assert status == 401 and headers["www-authenticate"] == 'Bearer realm="edgecnn"', authorization
        assert TOKEN not in body.decode()
    for path in ("/v1/events", "/v1/frame.jpg", "/v1/stream.mjpeg", "/v1/unsure/a/b.jpg", "/", "/metrics", "/nothing"):
        assert guarded.ask(path)[0] == 401, path
    assert guarded.ask("/v1/classify", data=b"x")[0] == 401
    assert guarded.ask(f"/v1/state?token={TOKEN}")[0] == 401, "not in a URL"
    assert guarded.ask("/healthz")[0] == guarded.ask("/readyz")[0] == 200

    assert guarded.ask("/login", data=b"token=wrong")[0] == 401
    import urllib.request

    class Stay(urllib.request.HTTPRedirectHandler):
        def redirect_request(self, *_):
            return None

    form = urllib.request.Request(f"{guarded.url}/login", f"token={TOKEN}".encode())
    try:
        urllib.request.build_opener(Stay).open(form, timeout=10)
    except urllib.error.HTTPError as answer:
        assert (answer.code, answer.headers["location"]) == (303, "/")
        cookie = answer.headers["set-cookie"]
    assert re.search("httponly", cookie, re.I) and re.search("samesite=strict", cookie, re.I) and TOKEN not in cookie
    assert re.search("max-age=2592000;", cookie, re.I), "thirty days"
    name, _, value = cookie.partition(";")[0].partition("=")
    assert guarded.ask("/v1/state", cookie=f"{name}={value}")[0] == 200
    until, _, mac = value.partition(".")
    for other in (f"{int(until) + 1}.{mac}", f"{until}.{mac[:-1]}0", f"1.{mac}", "", ".", f"-1.{mac}", "\u00b9.x"):
        if other != value:
            assert guarded.ask("/v1/state", cookie=f"{name}={other}".encode().decode("latin-1"))[0] == 401, other


def test_the_token_is_in_no_argument_or_variable(guarded):
    for process in (guarded.process.pid, *guarded.children()):
        for file in ("cmdline", "environ"):
            with open(f"/proc/{process}/{file}", "rb") as opened:
                assert TOKEN.encode() not in opened.read()
    guarded.ask("/v1/state", authorization=f"Bearer {TOKEN}")
    assert TOKEN not in "".join(guarded.notes + guarded.lines)


def test_other_names_and_other_origins_are_refused(guarded):
    token = {"authorization": f"Bearer {TOKEN}"}
    here = f"127.0.0.1:{guarded.port}"
    name = os.uname().nodename.lower()
    for host in (here, "localhost", f"LOCALHOST:{guarded.port}", "cam.example", "cam.example:443", name, "[::1]:80"):
        assert guarded.ask("/v1/state", host=host, **token)[0] == 200, host
    for host in (
        "evil.example",
        f"{here}.evil.example",
        "cam.example.evil",
        "8.8.8.8",
        "[2001:db8::1]",
        "a@cam.example",
        "cam.example:x",
    ):
        assert guarded.ask("/v1/state", host=host, **token)[0] == 421, host
    for origin in (f"http://{here}", "https://cam.example", "https://cam.example:8443"):
        assert guarded.ask("/v1/state", origin=origin, **token)[0] == 200, origin
    for origin in (
        "null",
        "http://evil.example",
        f"http://{here}1",
        "http://127.0.0.1",
        "file://",
        "http://[",
        "https://cam.example.evil",
    ):
        assert guarded.ask("/v1/state", origin=origin, **token)[0] == 403, origin
        assert guarded.ask("/login", data=b"token=x", origin=origin)[0] == 403, origin
    picture = {"sec-fetch-site": "cross-site", "sec-fetch-mode": "no-cors"}
    assert guarded.ask("/v1/frame.jpg", **picture, **token)[0] == 403
    assert guarded.ask("/v1/state", **{"sec-fetch-site": "same-origin"}, **token)[0] == 200
    link = {"sec-fetch-site": "cross-site", "sec-fetch-mode": "navigate", "accept": "text/html"}
    assert guarded.ask("/v1/state", **link, **token)[0] == 200, "somebody followed a link"


MIB = 1 << 20


def scope(headers=(), path=b"/v1/classify", query=b""):
    return {
        "type": "http",
        "method": "POST",
        "path": path.decode(),
        "raw_path": path,
        "query_string": query,
        "headers": list(headers),
    }


@pytest.mark.parametrize(
    ("status", "at", "beyond"),
    [
        (431, scope([(b"a", b"")] * 64), scope([(b"a", b"")] * 65)),
        (431, scope([(b"abc", b"x" * 16381)]), scope([(b"abc", b"x" * 16382)])),
        (414, scope(path=b"/" + b"p" * 47, query=b"q" * 2000), scope(path=b"/" + b"p" * 47, query=b"q" * 2001)),
        (413, scope([(b"content-length", b"16777216")]), scope([(b"content-length", b"16777217")])),
    ],
    ids=["headers", "their bytes", "address", "body"],
)
def test_the_limits_of_one_request(status, at, beyond):
    assert check_shape(Request(at)) is None
    assert check_shape(Request(beyond)).status_code == status


def test_open_requests_share_32_mib_and_give_them_back():
    answered, waiting = [], []

    async def app(scope, receive, send):
        if waiting:
            await guard(scope_of(waiting.pop(0)), receive, send)
        answered.append(scope["headers"][0][1])

    def scope_of(size):
        return scope([(b"content-length", str(size).encode())])

    async def send(message):
        if message["type"] == "http.response.start":
            answered.append(message["status"])

    guard = Guard(app, [check_shape])
    for _ in range(2):
        waiting[:] = [15 * MIB, MIB, 1, 0]
        asyncio.run(guard(scope_of(16 * MIB), None, send))
    full = [503, b"1048576", b"15728640", b"16777216"]
    assert answered == full * 2


def test_a_request_that_fails_gives_its_room_back():
    """As when a client leaves during an upload."""
    statuses = []

    async def app(scope, receive, send):
        raise ConnectionResetError

    async def send(message):
        statuses.append(message.get("status"))

    guard, size = Guard(app, [check_shape]), [(b"content-length", str(16 * MIB).encode())]
    for _ in range(3):
        with pytest.raises(ConnectionResetError):
            asyncio.run(guard(scope(size), None, send))
    assert statuses == []


NAME = "cam.example.org"


def nginx(block, folder, port):
    block = block.replace("443", f"127.0.0.1:{port}").replace("/etc/ssl/cam", str(folder / "cam"))
    path = folder / "nginx.conf"
    kept = "".join(
        f"{kind}_temp_path {folder}/{kind};" for kind in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
    )
    path.write_text(
        f"daemon off; user root; pid {folder}/pid; error_log stderr;\nevents {{}}\nhttp {{ access_log off; {kept}\n{block}}}\n"
    )
    return ["nginx", "-e", "stderr", "-c", str(path)]


def caddy(block, folder, port):
    block = block.replace(f"{NAME} {{", f"{NAME}:{port} {{\n    tls {folder}/cam.pem {folder}/cam.key")
    (folder / "Caddyfile").write_text(f"{{\n    admin off\n    auto_https disable_redirects\n}}\n{block}")
    return ["caddy", "run", "--config", str(folder / "Caddyfile")]


@pytest.fixture(scope="module")
def serving(serve, tmp_path_factory):
    token = tmp_path_factory.mktemp("token") / "token"
    token.write_text(TOKEN)
    options = ("--http-token-file", str(token), "--http-hosts", NAME)
    return serve("synthetic:64x48?fps=50&pattern=noise", *options).ready()


@pytest.mark.parametrize(
    "proxy, begins",
    [
        pytest.param(nginx, "server {", marks=pytest.mark.needs("nginx", "openssl")),
        pytest.param(caddy, f"{NAME} {{", marks=pytest.mark.needs("caddy", "openssl")),
    ],
    ids=["nginx", "caddy"],
)
def test_a_documented_proxy(serving, spawn, root, tmp_path, monkeypatch, free_port, proxy, begins):
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path))
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    blocks = re.findall(r"```text\n(.*?)```", (root / "docs/http.md").read_text(), re.DOTALL)
    block = next(block for block in blocks if block.startswith(begins))
    names = ["-subj", f"/CN={NAME}", "-addext", f"subjectAltName=DNS:{NAME}"]
    new = "openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -noenc -days 2 -keyout cam.key -out cam.pem"
    subprocess.run([*new.split(), *names], cwd=tmp_path, check=True, capture_output=True)
    port = free_port()
    with (tmp_path / "log").open("w") as log:
        process = spawn(proxy(block.replace("8080", str(serving.port)), tmp_path, port), stderr=log)

    real = socket.getaddrinfo
    monkeypatch.setattr(socket, "getaddrinfo", lambda host, *rest, **more: real("127.0.0.1", *rest, **more))
    trusted = urllib.request.HTTPSHandler(context=ssl.create_default_context(cafile=tmp_path / "cam.pem"))
    opener = urllib.request.build_opener(trusted, urllib.request.HTTPCookieProcessor())

    def ask(path, data=None, **headers):
        request = urllib.request.Request(f"https://{NAME}:{port}{path}", data, headers)
        return opener.open(request, timeout=10)

    def ready():
        assert process.poll() is None, (tmp_path / "log").read_text()
        try:
            return ask("/readyz").status == 200
        except OSError:
            return False

    serving.until(ready)
    with pytest.raises(urllib.error.HTTPError, match="401"):
        ask("/v1/state")
    page = ask("/login", f"token={TOKEN}".encode(), Origin=f"https://{NAME}")
    assert page.url == f"https://{NAME}:{port}/" and "<title>edgecnn</title>" in page.read().decode()
    assert json.load(ask("/v1/state"))["camera"] == "open", "with the cookie"
    with ask("/v1/events") as events:
        lines = [events.readline() for _ in range(8)]
    assert sum(line.startswith(b'data: {"schema"') for line in lines) >= 2
    with ask("/v1/stream.mjpeg") as stream:
        assert b"--edgecnn-frame" in stream.read(200)
    image = ask("/v1/frame.jpg").read()
    assert json.load(ask("/v1/classify", image))["decision"]
    with pytest.raises(urllib.error.URLError):  # 413, or the connection closes while the body is still being sent
        ask("/v1/classify", bytes(17 << 20))
