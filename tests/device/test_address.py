"""The address of the HTTP server and of the page, and who needs a token."""

import socket
from types import SimpleNamespace

import pytest

pytest.importorskip("starlette", reason="the server needs the http extra")


from edgecnn.device.address import Listen, Listener, is_local, open_listener, parse_listen
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
        open_listener(Http(address="0.0.0.0:0"))
    with open_listener(Http(address="0.0.0.0:0", open=True)).listener:
        pass
    file = tmp_path / "token"
    file.write_text(f"{TOKEN}\n")
    door = open_listener(Http(address="0.0.0.0:0", token_file=file, hosts="Cam.example, proxy"))
    with door.listener:
        assert door.token == TOKEN and door.hosts == ("cam.example", "proxy") and not door.is_wide_open
    for text in ("short", "two words of some length", "b\u00e4r" * 9, ""):
        file.write_text(text)
        with pytest.raises(ValueError, match="at least 16 ASCII characters") as error:
            open_listener(Http(address="0", token_file=file))
        assert not text or text not in str(error.value)
    with pytest.raises(ValueError, match="No such file"):
        open_listener(Http(address="0", token_file=tmp_path / "none"))
    file.write_text("t" * 16)
    monkeypatch.setenv("EDGECNN_HTTP_TOKEN", "e" * 15)
    with open_listener(Http(address="0", token_file=file)).listener:
        pass
    with pytest.raises(ValueError, match="EDGECNN_HTTP_TOKEN: expected one line of at least 16"):
        open_listener(Http(address="0"))
    monkeypatch.setenv("EDGECNN_HTTP_TOKEN", "e" * 16)
    for given, token in ((file, "t" * 16), (None, "e" * 16)):
        door = open_listener(Http(address="localhost:0", token_file=given, hosts="127.0.0.9,cam"))
        with door.listener:
            assert door.token == token and door.hosts == ("cam", "localhost"), "numbers are no names"


def test_the_pages_address_is_one_that_a_person_can_open():
    def shown(host, token=None):
        door = Listener(SimpleNamespace(getsockname=lambda: (host, 8080, 0, 0)), token, ())
        return door.url, door.is_wide_open

    name = f"http://{socket.gethostname()}:8080/"
    assert shown("0.0.0.0") == shown("::") == (name, True) and shown("0.0.0.0", TOKEN) == (name, False)
    assert shown("127.0.0.1") == ("http://127.0.0.1:8080/", False) and shown("::1") == ("http://[::1]:8080/", False)
    assert shown("192.168.0.7") == ("http://192.168.0.7:8080/", True)
    assert Listen("::1", 80).shown == "[::1]:80" and Listen("board", 80).shown == "board:80"
