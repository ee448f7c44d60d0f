"""Access control: names, origins, tokens and cookies, tested on the real server."""

import asyncio
import base64
import hashlib
import os
import re
import socket
from types import SimpleNamespace

import httpx
import pytest
from starlette.responses import Response
from starlette.routing import Route

from edgecnn.device.http import auth, page
from edgecnn.device.http.address import Listen, is_local, parse_listen
from edgecnn.device.http.app import make_app
from edgecnn.device.http.door import Door, open_door
from edgecnn.device.stream.settings import Http

TOKEN = "correct-horse-battery-staple"


def test_addresses():
    for text, expected in (
        ("8080", Listen("127.0.0.1", 8080)),
        ("0.0.0.0:80", Listen("0.0.0.0", 80)),
        ("[::1]:0", Listen("::1", 0)),
        ("board.local:65535", Listen("board.local", 65535)),
    ):
        assert parse_listen(text) == expected
    for text in ("", "http", "8080:", ":8080", "::1:80", "a b:80", "65536", "-1", "http://x:1", "x:1/"):
        with pytest.raises(ValueError, match="expected PORT or HOST:PORT"):
            parse_listen(text)


def test_addresses_of_this_machine():
    assert all(is_local(host) for host in ("127.0.0.1", "127.9.9.9", "::1", "localhost"))
    assert not any(is_local(host) for host in ("0.0.0.0", "::", "192.168.0.7", "board.local"))


def test_a_token_is_required_beyond_this_machine(tmp_path, monkeypatch):
    monkeypatch.delenv("EDGECNN_HTTP_TOKEN", raising=False)
    with pytest.raises(
        ValueError, match=r"other machines can reach 0\.0\.0\.0:0, so clients need a token.*--http-token-file"
    ):
        open_door(Http(address="0.0.0.0:0"))
    with open_door(Http(address="0.0.0.0:0", open=True)).listener:
        pass
    file = tmp_path / "token"
    file.write_text(f"{TOKEN}\n")
    door = open_door(Http(address="0.0.0.0:0", token_file=file, hosts="Cam.example, proxy"))
    with door.listener:
        assert door.token == TOKEN and door.hosts == ("cam.example", "proxy") and not door.is_wide_open
    for text in ("short", "two words of some length", "b\u00e4r" * 9, ""):
        file.write_text(text)
        with pytest.raises(ValueError, match="at least 16 ASCII characters") as error:
            open_door(Http(address="0", token_file=file))
        assert not text or text not in str(error.value)
    with pytest.raises(ValueError, match="No such file"):
        open_door(Http(address="0", token_file=tmp_path / "none"))
    file.write_text("t" * 16)
    monkeypatch.setenv("EDGECNN_HTTP_TOKEN", "e" * 15)
    with open_door(Http(address="0", token_file=file)).listener:
        pass
    with pytest.raises(ValueError, match="EDGECNN_HTTP_TOKEN: expected one line of at least 16"):
        open_door(Http(address="0"))
    monkeypatch.setenv("EDGECNN_HTTP_TOKEN", "e" * 16)
    for given, token in ((file, "t" * 16), (None, "e" * 16)):
        door = open_door(Http(address="localhost:0", token_file=given, hosts="127.0.0.9,cam"))
        with door.listener:
            assert door.token == token and door.hosts == ("cam", "localhost"), "numbers are no names"


def test_the_pages_address_is_one_that_a_person_can_open():
    def shown(host, token=None):
        door = Door(SimpleNamespace(getsockname=lambda: (host, 8080, 0, 0)), token, ())
        return door.url, door.is_wide_open

    name = f"http://{socket.gethostname()}:8080/"
    assert shown("0.0.0.0") == shown("::") == (name, True) and shown("0.0.0.0", TOKEN) == (name, False)
    assert shown("127.0.0.1") == ("http://127.0.0.1:8080/", False) and shown("::1") == ("http://[::1]:8080/", False)
    assert shown("192.168.0.7") == ("http://192.168.0.7:8080/", True)
    assert Listen("::1", 80).shown == "[::1]:80" and Listen("board", 80).shown == "board:80"


def test_a_login_lasts_thirty_days_and_leads_back_to_the_page(monkeypatch):
    now = [1_800_000_000.9]
    monkeypatch.setattr(auth, "time", SimpleNamespace(time=lambda: now[0]))

    def ask(method, path, token=TOKEN, **more):
        gate = auth.Gate(token, ("cam.example",), 8080)
        routes = [*gate.routes(), *page.routes(), Route("/v1/state", lambda request: Response("secret"))]

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
    door = open_door(Http(address="0"))
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
