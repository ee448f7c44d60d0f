"""Access control: names, origins, tokens and cookies, tested on the real server."""

import base64
import os
import re

import pytest

from edgecnn.device.http.address import Listen, is_local, parse_listen
from edgecnn.device.http.door import open_door
from edgecnn.device.stream.settings import Http

TOKEN = "correct-horse-battery-staple"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("8080", Listen("127.0.0.1", 8080)),
        ("0.0.0.0:80", Listen("0.0.0.0", 80)),
        ("[::1]:0", Listen("::1", 0)),
        ("board.local:65535", Listen("board.local", 65535)),
    ],
)
def test_addresses(text, expected):
    assert parse_listen(text) == expected


@pytest.mark.parametrize(
    "text", ["", "http", "8080:", ":8080", "::1:80", "a b:80", "65536", "-1", "http://x:1", "x:1/"]
)
def test_invalid_addresses(text):
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
