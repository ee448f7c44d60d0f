"""The proxy configurations from docs/http.md in real nginx and Caddy: the page, its cookie, events and pictures pass through."""

import json
import re
import socket
import ssl
import subprocess
import urllib.error
import urllib.request

import pytest

pytest.importorskip("starlette", reason="the server needs the http extra")

NAME = "cam.example.org"
TOKEN = "correct-horse-battery-staple"


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
