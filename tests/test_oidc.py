"""Tokens of an OpenID Connect provider, and what the provider's troubles do to those who bring one.

The provider is a socket on loopback that answers as it is told. Nothing here measures time: where an
answer must not wait for the provider, the provider's own is still to come when it is there.
"""

import base64
import gzip
import json
import secrets
import signal
import socket
import socketserver
import struct
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, TypeAlias

import httpx2
import pytest

from tests.support.answers import unavailable
from tests.support.databases import Database
from tests.support.pages import block_text, blocks, follow, page_text
from tests.support.processes import once, wait_for
from tests.support.repository import replace
from tests.support.services import Server, Service

Behaviour: TypeAlias = Callable[[socket.socket, str], None]

AUDIENCE = "https://api.example"
CONFIGURATION = "/.well-known/openid-configuration"
REFUSED = "no keys from the provider: "

# Run in the service's environment, which has the libraries: prints key sets and tokens.
SIGNER = r"""
import base64, hashlib, hmac, json, sys, time
import jwt
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from jwt.algorithms import ECAlgorithm, RSAAlgorithm

issuer, audience = sys.argv[1:]
ours, foreign, new, short = (
    rsa.generate_private_key(public_exponent=65537, key_size=size)
    for size in (2048, 2048, 2048, 1024)
)
curve, other_curve = ec.generate_private_key(ec.SECP256R1()), ec.generate_private_key(ec.SECP384R1())
now = int(time.time())
claims = {"iss": issuer, "aud": audience, "sub": "anna", "scope": "openid items", "exp": now + 3600}


def public(key, kid, **more):
    kind = RSAAlgorithm if isinstance(key, rsa.RSAPrivateKey) else ECAlgorithm
    return kind.to_jwk(key.public_key(), as_dict=True) | {"kid": kid, "use": "sig"} | more


def token(key=ours, algorithm="RS256", kid="ours", typ="at+jwt", header={}, **changed):
    body = {name: value for name, value in {**claims, **changed}.items() if value is not None}
    names = {"kid": kid, "typ": typ, **header}
    names = {name: value for name, value in names.items() if value is not None or name == "typ"}
    return jwt.PyJWS().encode(json.dumps(body).encode(), key, algorithm, names)


def encoded(data):
    data = data if isinstance(data, bytes) else json.dumps(data).encode()
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()


def forged(header, body=claims, signature=b"-" * 256):
    return f"{encoded(header)}.{encoded(body)}.{encoded(signature)}"


def signed_with_what_is_public(secret):
    text = f"{encoded({'alg': 'HS256', 'typ': 'at+jwt', 'kid': 'ours'})}.{encoded(claims)}"
    return f"{text}.{encoded(hmac.digest(secret, text.encode(), 'sha256'))}"


pem = ours.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
header = {"alg": "RS256", "typ": "at+jwt", "kid": "ours"}
good = {
    "good": token(),
    "of the other algorithm": token(curve, "ES256", "curve"),
    "of a type in capitals": token(typ="AT+JWT"),
    "of the long type": token(typ="application/at+jwt"),
    "for several": token(aud=["https://other.example", audience]),
    "just expired": token(exp=now - 2),  # within the leeway
    "a little early": token(nbf=now + 60, iat=now + 60),
    "with a key of its own that is not used": token(header={"jwk": public(foreign, "ours")}),
}
bad = {
    "expired": token(exp=now - 3600),
    "endless": token(exp=None),
    "that ends on no day": token(exp="tomorrow"),
    "that ends nowhere": token(exp=float("inf")),
    "that ends with no number": token(exp=float("nan")),
    "too early": token(nbf=now + 7200),
    "from the future": token(iat=now + 7200),
    "nobody's": token(sub=None),
    "of an empty subject": token(sub=""),
    "of a blank subject": token(sub=" "),
    "for another": token(aud="https://other.example"),
    "for others": token(aud=["https://other.example", "https://api"]),
    "for nobody": token(aud=[]),
    "for all": token(aud=None),
    "for an object": token(aud={audience: 1}),
    "from another": token(iss="https://other.example"),
    "from several": token(iss=[issuer]),
    "an ID token": token(typ="JWT"),
    "without a type": token(typ=None),
    "of a type that is a list": token(typ=["at+jwt"]),
    "signed by another": token(foreign),
    "signed by another, with its key": token(foreign, header={"jwk": public(foreign, "ours")}),
    "signed by another, with a link": token(
        foreign, header={"jku": issuer + "/evil", "x5u": issuer + "/evil"}
    ),
    "of another algorithm": token(algorithm="RS512"),
    "of the other key's algorithm": token(curve, "ES256"),
    "of no key": token(kid=None),
    "with a secret": token("no key of anybody's, but long enough", "HS256"),
    "signed with the public key": signed_with_what_is_public(pem),
    "signed with the public key as JSON": signed_with_what_is_public(
        json.dumps(public(ours, "ours")).encode()
    ),
    "unsigned": token(None, "none"),
    "unsigned in capitals": forged(header | {"alg": "None"}, signature=b""),
    "without a signature": token().rpartition(".")[0] + ".",
    "changed": ".".join([*token().split(".")[:1], encoded(claims | {"sub": "root"}), token().split(".")[2]]),
    "that must be understood": token(header={"crit": ["more"], "more": 1}),
    "with its text elsewhere": forged(header | {"b64": False, "crit": ["b64"]}),
    "of a kid that is a number": forged(header | {"kid": 1}),
    "of a kid that is a path": forged(header | {"kid": "../../dev/null"}),
    "of algorithms": forged(header | {"alg": ["RS256"]}),
    "of an algorithm that is an object": forged(header | {"alg": {}}),
    "without an algorithm": forged({"typ": "at+jwt", "kid": "ours"}),
    "whose header is a list": forged([1]),
    "whose header is no JSON": forged(b"{"),
    "whose header is no text": forged(b"\xff"),
    "whose header has no end": forged(b"[" * 5000),
    "whose header is a number": forged(b"1" * 5000),
    "that is long": token(padding="-" * 9000),
    "encrypted": "a.b.c.d.e",
    "garbage": "a.b.c",
    "one part": "a",
    "dots": "....",
    "two": token() + " " + token(),
    "padded": token() + "=",
    "no ASCII": "\u00e9.\u00e9.\u00e9",
}
private = json.loads(RSAAlgorithm.to_jwk(foreign)) | {"kid": "private"}
odd = {
    "of an unknown type": {"kty": "PQ", "kid": "q", "alg": "ML-DSA"},
    "too short": public(short, "short"),
    "of another curve": public(other_curve, "p384"),
    "of another curve than it says": public(other_curve, "p384", alg="ES256"),
    "of another kind than it says": public(curve, "mixed", alg="RS256"),
    "of another algorithm": public(new, "other", alg="RS512"),
    "to encrypt with": public(new, "enc", use="enc"),
    "secret": {"kty": "oct", "k": "c2VjcmV0", "kid": "oct", "alg": "HS256"},
    "private": private,
    "of a type that is a list": {"kty": ["RSA"], "kid": "list"},
    "of algorithms": public(new, "algorithms", alg=["RS256"]),
    "of a name that is a list": public(new, ["new"]),
    "without numbers": {"kty": "RSA", "kid": "none"},
    "of numbers that are none": {"kty": "RSA", "kid": "none", "n": 1, "e": []},
    "of a point that is none": {"kty": "EC", "crv": "P-256", "x": "AA", "y": "AA", "kid": "point"},
    "null": None,
    "a text": "key",
    "a list": [],
}
tokens = {"new": token(new, kid="new"), "without scope": token(scope=None)}
tokens["of a list of scopes"] = token(scope=["a items b"])
keys = {"ours": public(ours, "ours"), "curve": public(curve, "curve"), "new": public(new, "new")}
print(json.dumps({"good": good, "bad": bad, "tokens": tokens, "odd": odd, "keys": keys}))
"""


class Provider(socketserver.ThreadingTCPServer):
    """Answers as `behave` does, and knows which exchanges are in flight."""

    daemon_threads = True
    allow_reuse_address = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Exchange)
        self.issuer = f"http://127.0.0.1:{self.server_address[1]}"
        self.begun = 0
        self.under_way: dict[socket.socket, str] = {}  # with the path of each
        self.behave: Behaviour = hold

    def cut(self) -> None:
        for connection in list(self.under_way):
            with suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)


class Exchange(socketserver.BaseRequestHandler):
    server: Provider

    def handle(self) -> None:
        head = b""
        while b"\r\n\r\n" not in head and (part := self.request.recv(4096)):
            head += part
        path = head.split(b" ")[1].decode() if head else ""
        self.server.begun += path == CONFIGURATION
        self.server.under_way[self.request] = path
        with suppress(OSError):
            self.server.behave(self.request, path)
        del self.server.under_way[self.request]


def hold(connection: socket.socket, path: str) -> None:
    connection.recv(1)  # nothing comes until somebody hangs up


def drip(connection: socket.socket, path: str) -> None:
    connection.sendall(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")
    while True:
        connection.sendall(b"1\r\n \r\n")
        time.sleep(0.02)


def flood(connection: socket.socket, path: str) -> None:
    connection.sendall(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")
    while True:
        connection.sendall(b"10000\r\n" + b" " * 65536 + b"\r\n")


def reset(connection: socket.socket, path: str) -> None:
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    connection.close()


def hang_up(connection: socket.socket, path: str) -> None:
    pass


def raw(content: bytes, status: str = "200 OK", *headers: str) -> Behaviour:
    def send(connection: socket.socket, path: str) -> None:
        lines = [f"HTTP/1.1 {status}", "Connection: close", *headers, "", ""]
        connection.sendall("\r\n".join(lines).encode() + content)

    return send


def answering(
    issuer: str,
    keys: Any,
    configuration: dict[str, Any] | None = None,
    *headers: str,
) -> Behaviour:
    """Answer with a configuration and a key set, or with what is given in place of either."""
    told = {"issuer": issuer, "jwks_uri": f"{issuer}/keys"} | (configuration or {})

    def answer(connection: socket.socket, path: str) -> None:
        if path == CONFIGURATION:
            send = raw(json.dumps(told).encode())
        elif callable(keys):
            send = keys
        else:
            content = keys if isinstance(keys, bytes) else json.dumps(keys).encode()
            send = raw(content, "200 OK", *headers)
        send(connection, path)

    return answer


@contextmanager
def providing() -> Iterator[Provider]:
    with Provider() as provider:
        threading.Thread(target=provider.serve_forever, daemon=True).start()
        yield provider
        provider.cut()
        provider.shutdown()


@pytest.fixture(scope="module")
def protected(service: Service, whole_run: Path) -> Service:
    """A service that does what the page says, and what the page has checked.

    The first worker makes it, and all others copy it: the page has them run the service's tests.
    """
    folder = whole_run / f"oidc-{service.database}"

    def make() -> str:
        follow("oidc", service.copy(folder), {})
        return ""

    once(folder.with_suffix(".made"), make)
    return Service(folder, service.database)


def sign(service: Service, issuer: str) -> dict[str, Any]:
    command = (".venv/bin/python", "-W", "ignore", "-c", SIGNER, issuer, AUDIENCE)
    made: dict[str, Any] = json.loads(service.run(*command).stdout)
    return made


def bearer(token: str) -> dict[bytes, bytes]:
    return {b"Authorization": b"Bearer " + token.encode()}


def status(server: Server, token: str, path: str = "/me") -> int:
    return server.client.get(path, headers=bearer(token)).status_code


def forge(token: str) -> str:
    """Give a token the name of a key that nobody has."""
    header = {"alg": "RS256", "typ": "at+jwt", "kid": secrets.token_hex(8)}
    encoded = base64.urlsafe_b64encode(json.dumps(header).encode()).rstrip(b"=").decode()
    return f"{encoded}.{token.partition('.')[2]}"


@pytest.mark.long
def test_tokens_of_the_provider_open_what_their_scopes_name(
    protected: Service, migrated: Database, tmp_path: Path
) -> None:
    protected = protected.copy(tmp_path / "service")
    keys = protected.folder / "app/features/auth/keys.py"
    replace(keys, "PAUSE = 10.0", "PAUSE = 900.0")  # however long this takes, keys are fresh
    replace(keys.with_name("caller.py"), "leeway=10", "leeway=900")
    with providing() as provider:
        made = sign(protected, provider.issuer)
        provider.behave = answering(provider.issuer, {"keys": list(made["keys"].values())})
        variables = {"OIDC_ISSUER": provider.issuer, "OIDC_AUDIENCE": AUDIENCE}
        with protected.serve(**variables, **migrated.variables) as server:
            good: str = made["good"]["good"]
            wait_for(lambda: status(server, good) == 200)
            assert server.client.get("/me", headers=bearer(good)).json() == "anna"
            for kind, token in made["good"].items():
                assert (kind, status(server, token, "/items")) == (kind, 200)

            for kind in ("without scope", "of a list of scopes"):
                token = made["tokens"][kind]
                assert status(server, token) == 200
                refused = server.client.get("/items", headers=bearer(token))
                assert (refused.status_code, refused.json()["title"]) == (403, "Forbidden")
                said = refused.headers["WWW-Authenticate"]
                assert said == 'Bearer error="insufficient_scope", scope="items"'
            for headers in ({}, {"Authorization": "Basic YTpi"}, {"Authorization": "Bearer"}):
                nobody = server.client.get("/items", headers=headers)
                assert (nobody.status_code, nobody.json()["status"]) == (401, 401)
                assert nobody.headers["WWW-Authenticate"] == "Bearer"
            assert server.client.get(f"/me?access_token={good}").status_code == 422
            for kind, token in made["bad"].items():
                refused = server.client.get("/me", headers=bearer(token))
                assert (kind, refused.status_code) == (kind, 401)
                assert refused.json()["detail"] == "The access token is not valid."
                assert refused.headers["WWW-Authenticate"] == 'Bearer error="invalid_token"'

            document = server.client.get("/openapi.json").json()
            [(name, scheme)] = document["components"]["securitySchemes"].items()
            assert (scheme["scheme"], scheme["bearerFormat"]) == ("bearer", "JWT")
            listing = document["paths"]["/items"]["get"]
            assert listing["security"] == [{name: ["items"]}]
            assert {"401", "403", "503"} <= listing["responses"].keys()
        everything = [*made["good"].values(), *made["bad"].values(), *made["tokens"].values()]
        shown = [token for token in everything if len(token) > 9 and token in server.log()]
        assert shown == []
        assert "Traceback" not in server.log()


def kinds_of_trouble(provider: Provider, made: dict[str, Any]) -> dict[str, Behaviour]:
    """What a provider may do wrong, always with good keys somewhere that must not be used."""
    issuer, keys = provider.issuer, {"keys": list(made["keys"].values())}
    text = json.dumps(keys).encode()

    def of_keys(content: Any, *headers: str) -> Behaviour:
        return answering(issuer, content, None, *headers)

    def of_configuration(**told: Any) -> Behaviour:
        return answering(issuer, keys, told)

    html = b"<html><title>Down for maintenance</title></html>"
    return {
        "silence, cut": hold,
        "reset": reset,
        "hung up": hang_up,
        "keys reset": of_keys(reset),
        "keys hung up": of_keys(hang_up),
        "without end": flood,
        "keys without end": of_keys(flood),
        "a header without end": raw(b"", "200 OK", "X-Long: " + "x" * 200_000),
        "no HTTP": raw(b"", "SMTP"),
        "HTML": raw(html, "200 OK", "Content-Type: text/html"),
        "HTML for keys": of_keys(html),
        "empty": raw(b""),
        "empty for keys": of_keys(b""),
        "500": raw(text, "500 Internal Server Error"),
        "401": raw(text, "401 Unauthorized"),
        "204": raw(b"", "204 No Content"),
        "redirected": raw(b"", "302 Found", f"Location: {issuer}/keys"),
        "keys redirected": of_keys(raw(text, "307 Moved", f"Location: {issuer}/keys")),
        "cut off": of_keys(raw(text, "200 OK", f"Content-Length: {len(text) + 1}")),
        "compressed": of_keys(gzip.compress(b" " * 10_000_000 + text), "Content-Encoding: gzip"),
        "too large": of_keys(b" " * 200_000 + text),
        "not UTF-8": of_keys(b"\xff" + text),
        "nested": of_keys(b"[" * 60_000),
        "a number": of_keys(b'{"keys": ' + b"1" * 60_000 + b"}"),
        "null": of_keys(None),
        "a list": of_keys([]),
        "an object": of_keys({}),
        "no keys": of_keys({"keys": []}),
        "keys that are null": of_keys({"keys": None}),
        "keys that are an object": of_keys({"keys": {"a": 1}}),
        "keys that are a text": of_keys({"keys": "RSA"}),
        "two of a name": of_keys({"keys": [*keys["keys"], made["keys"]["new"] | {"kid": "ours"}]}),
        **{f"a key {kind}": of_keys({"keys": [key]}) for kind, key in made["odd"].items()},
        "another issuer": of_configuration(issuer="https://other.example"),
        "an issuer with a slash": of_configuration(issuer=issuer + "/"),
        "no issuer": of_configuration(issuer=None),
        "keys by plain HTTP": of_configuration(jwks_uri="http://keys.example/keys"),
        "keys from a file": of_configuration(jwks_uri="file:///etc/passwd"),
        "keys from nowhere": of_configuration(jwks_uri="https://"),
        "keys from a number": of_configuration(jwks_uri=1),
        "no keys' address": of_configuration(jwks_uri=None),
        "a configuration that is a list": raw(b"[]"),
    }


@pytest.mark.long
@pytest.mark.parametrize("database_name", ["sqlite"], indirect=True)
def test_no_trouble_of_the_provider_delays_or_refuses_a_good_token(
    protected: Service, migrated: Database, tmp_path: Path
) -> None:
    protected = protected.copy(tmp_path / "service")
    keys, pause = protected.folder / "app/features/auth/keys.py", 0.05
    replace(keys, "PAUSE = 10.0", f"PAUSE = {pause}")
    replace(keys, "INTERVAL = 300.0", "INTERVAL = 1.0")
    with providing() as provider:
        made = sign(protected, provider.issuer)
        good, new = made["good"]["good"], made["tokens"]["new"]
        ours, both = (
            [made["keys"][name] for name in names] for names in (["ours"], ["ours", "new"])
        )
        variables = {"OIDC_ISSUER": provider.issuer, "OIDC_AUDIENCE": AUDIENCE}

        with protected.serve(**variables, **migrated.variables) as server:

            def warnings() -> int:
                return server.log().count(REFUSED)

            def forged() -> httpx2.Response:
                """Come as a stranger, who makes the service ask for keys."""
                refused = server.client.get("/me", headers=bearer(forge(good)))
                assert refused.status_code == 401 or unavailable(refused), refused.text
                return refused

            # before there are any keys, and while the first are on their way
            wait_for(lambda: len(provider.under_way) == 1)
            assert unavailable(server.client.get("/me", headers=bearer(good)))
            assert "unavailable: no keys: " in server.log()
            assert server.client.get("/health/ready").status_code == 200
            assert len(provider.under_way) == 1
            provider.behave = answering(provider.issuer, {"keys": ours})
            provider.cut()
            wait_for(lambda: status(server, good) == 200)

            # an exchange that does not end
            held = {"/keys": answering(provider.issuer, hold), CONFIGURATION: drip}
            for path, behaviour in held.items():
                begun, provider.behave = provider.begun, behaviour
                provider.cut()

                def is_held(begun: int = begun, path: str = path) -> bool:
                    forged()
                    return provider.begun > begun and list(provider.under_way.values()) == [path]

                wait_for(is_held)
                [exchange] = provider.under_way
                for _ in range(10):
                    assert status(server, good) == 200
                    assert unavailable(forged())
                assert list(provider.under_way) == [exchange]
            begun = provider.begun
            wait_for(lambda: provider.begun > begun)  # however much has come of the last
            assert status(server, good) == 200

            # each other answer, until one that began with it has ended
            for kind, trouble in kinds_of_trouble(provider, made).items():
                end, provider.behave = warnings() + 2, trouble

                def is_over(kind: str = kind, cut: bool = trouble is hold, end: int = end) -> bool:
                    forged()
                    assert (kind, status(server, good)) == (kind, 200)
                    if cut:
                        provider.cut()
                    return warnings() >= end

                wait_for(is_over)
            assert status(server, new) == 503

            # what is odd beside what is good, of whatever type of content
            provider.behave = answering(
                provider.issuer,
                {"keys": [*made["odd"].values(), *both]},
                None,
                "Content-Type: text/html",
            )
            wait_for(lambda: status(server, new) == 200)
            assert status(server, good) == 200

            # thousands of strangers, and a provider that is silent
            provider.behave = hold
            begun, start = provider.begun, time.monotonic()
            for number in range(2000):
                forged()
                if number % 20 == 0:
                    assert status(server, good) == 200
            assert provider.begun - begun <= 1 + (time.monotonic() - start) / pause

            # a key that is withdrawn, without anybody asking
            provider.behave = answering(provider.issuer, {"keys": both[1:]})
            provider.cut()
            wait_for(lambda: status(server, good) in (401, 503))
            assert status(server, new) == 200

            provider.behave = hold
            wait_for(lambda: len(provider.under_way) == 1)
            server.stop(signal.SIGTERM)
        log = server.log()
        assert "engine disposed of" in log
        for reason in ("jwks_uri is not https", "the configuration is another issuer's"):
            assert REFUSED + reason in log
        for never in ("Traceback", "was destroyed", good, new, "passwd", "maintenance"):
            assert never not in log


BEHAVIOUR = """
import re, sys, time
from app.features.auth import keys
from app.features.settings import FeatureSettings

known = keys.ProviderKeys("https://issuer.example")
known.keys = {("a", "RS256"): "key"}
for age in (0, keys.PAUSE * 2, keys.MAX_AGE - 60, keys.MAX_AGE + 60):
    known.fetched = time.monotonic() - age
    for kid in ("a", "b"):
        try:
            print(known.find(kid, "RS256"))
        except keys.KeysUnavailable:
            print("unavailable")
for issuer in sys.argv[1:]:
    try:
        FeatureSettings(oidc_issuer=issuer, oidc_audience="a")
        print(issuer)
    except ValueError:
        pass
"""


@pytest.mark.parametrize("database_name", ["sqlite"], indirect=True)
def test_keys_are_used_for_a_day_and_come_from_nowhere_but_by_tls(protected: Service) -> None:
    secure = ["https://a.example", "http://127.0.0.1:9/a", "http://localhost", "http://[::1]:9"]
    insecure = [
        "http://a.example",
        "http://localhost.a.example",
        "http://localhost@a.example",
        "http://localhost:1@a.example",
        "http://127.0.0.1.a.example",
        "http://127.0.0.1?a.example",
        "HTTP://a.example",
        "ftp://localhost",
        "//localhost",
        "a.example#https://",
        "",
    ]
    said = protected.run(".venv/bin/python", "-c", BEHAVIOUR, *secure, *insecure).stdout
    known = ["key", "None", "key", "unavailable", "key", "unavailable", *["unavailable"] * 2]
    assert said.splitlines() == [*known, *secure]

    refused = protected.run(".venv/bin/python", "-c", "import app.main", check=False)
    assert refused.returncode == 1
    assert "  OIDC_ISSUER: " in refused.stdout
    assert "  OIDC_AUDIENCE: " in refused.stdout


TALK = """
import json, sys
from websockets.exceptions import ConnectionClosed, InvalidStatus
from websockets.sync.client import connect

address, *tokens = sys.argv[1:]
for token in tokens:
    headers = {"Authorization": f"Bearer {token}"} if token else {}
    try:
        with connect(address, additional_headers=headers) as socket:
            socket.send(json.dumps({"name": token[-9:]}))
            print(json.loads(socket.recv()).keys())
    except InvalidStatus as refused:
        print(refused.response.status_code, refused.response.headers.get("WWW-Authenticate"))
    except ConnectionClosed as closed:
        print(closed.rcvd.code, closed.rcvd.reason)
"""


@pytest.mark.long
@pytest.mark.parametrize("database_name", ["sqlite"], indirect=True)
def test_a_websocket_is_for_those_with_a_token_and_ends_with_it(
    protected: Service, migrated: Database, tmp_path: Path
) -> None:
    copy = protected.copy(tmp_path / "service")
    page, live = page_text("how-to/websockets.md"), copy.folder / "app/features/live"
    live.mkdir()
    for name in ("__init__.py", "queries.py", "routes.py"):
        (live / name).write_text(block_text(page, f"app/features/live/{name}"))
    [handler] = [it.text for it in blocks(page) if not it.title and "@router.websocket" in it.text]
    routes = (live / "routes.py").read_text()
    before, _, after = routes.partition("@router.websocket")
    imports = "import time\nfrom typing import Annotated\nfrom fastapi import Security\n"
    imports += "from app.features.auth.caller import Caller, get_caller\n"
    rest = after[after.index("async def answer") :]
    (live / "routes.py").write_text(f"{imports}{before}{handler}\n\n{rest}")
    registration = copy.folder / "app/features/registration.py"
    replace(
        registration, "\n\n\ndef", "\nfrom app.features.live.routes import router as live\n\n\ndef"
    )
    replace(
        registration, "    add_auth(app)\n", "    add_auth(app)\n    app.include_router(live)\n"
    )
    replace(copy.folder / "app/features/auth/caller.py", "leeway=10", "leeway=900")
    copy.run("uv", "add", "--quiet", "websockets")
    copy.run(".venv/bin/mypy", "app")

    with providing() as provider:
        made = sign(copy, provider.issuer)
        provider.behave = answering(provider.issuer, {"keys": list(made["keys"].values())})
        variables = {"OIDC_ISSUER": provider.issuer, "OIDC_AUDIENCE": AUDIENCE}
        with copy.serve(
            ".venv/bin/python", "-m", "app.server", **variables, **migrated.variables
        ) as it:
            wait_for(lambda: status(it, made["good"]["good"]) == 200)
            address = str(it.client.base_url).replace("http", "ws") + "/live/items"
            tokens = [
                made["good"]["good"],
                "",
                made["bad"]["signed by another"],
                made["tokens"]["without scope"],
                made["good"]["just expired"],  # within the leeway
            ]
            said = copy.run(".venv/bin/python", "-c", TALK, address, *tokens).stdout
        assert said.splitlines() == [
            "dict_keys(['id'])",
            "401 Bearer",
            '401 Bearer error="invalid_token"',
            '403 Bearer error="insufficient_scope", scope="items"',
            "1008 The token has expired.",
        ]
        assert "Traceback" not in it.log()
