"""Applications that raise, send what is out of order or invalid, answer late, or never."""

from __future__ import annotations

import logging
from array import array
from typing import Any

import pytest
import trio

from hoststack import StreamResetError, http3
from hoststack.asgi import AsgiConfig, DisconnectedError
from tests.asgi.serving import SERVER, answering, run, serving, talking, text
from tests.http3.peers import SMALL, TRUSTING

OFF = AsgiConfig(lifespan="off")
START = {"type": "http.response.start", "status": 200}
BODY = {"type": "http.response.body", "body": b"x"}
MORE = {**BODY, "more_body": True}
TRAILERS = {"type": "http.response.trailers", "headers": [(b"a", b"b")]}


def start(**fields: Any) -> Any:
    return {**START, **fields}


def header(name: Any, value: Any) -> Any:
    return start(headers=[(name, value)])


#: What is sent, and what the log says of it; the client gets 500.
EARLY: dict[str, tuple[list[Any], str]] = {
    "nothing": ([], "returned without a response"),
    "body first": ([BODY], "http.response.start comes first"),
    "trailers first": ([TRAILERS], "http.response.start comes first"),
    "two starts": ([START, START], "http.response.body comes next"),
    "start alone": ([START], "with more_body false"),
    "unknown": ([{"type": "http.request"}], "http.response.start comes first"),
    "of a websocket": ([{"type": "websocket.accept"}], "http.response.start comes first"),
    "no type": ([{"status": 200}], "a dict with a `type`"),
    "no dict": (["http.response.start"], "a dict with a `type`"),
    "none": ([None], "a dict with a `type`"),
    "no status": ([{"type": "http.response.start"}], "the status is an int"),
    "status text": ([start(status="ok")], "the status is an int"),
    "status 101": ([start(status=101)], "200 to 999"),
    "status 1000": ([start(status=1000)], "200 to 999"),
    "headers flat": ([start(headers=[b"a"])], "pairs of bytes"),
    "headers none": ([start(headers=None)], "pairs of bytes"),
    "header int": ([start(headers=[(1, b"a")])], "pairs of bytes"),
    "header value int": ([header(b"a", 1), BODY], ""),
    "header line end": ([header(b"a", b"b\r\nc: d"), BODY], "characters"),
    "header nul": ([header(b"a", b"b\0"), BODY], "characters"),
    "header name": ([header(b"a b", b"c"), BODY], "characters"),
    "pseudo header": ([header(b":status", b"200"), BODY], "no such header"),
    "length text": ([header(b"content-length", b"x"), BODY], "is a number"),
    "length negative": ([header(b"content-length", b"-1"), BODY], "is a number"),
    "too long": ([header(b"content-length", b"0"), BODY], "longer than the announced"),
    "too short": ([header(b"content-length", b"9"), BODY], "8 bytes shorter"),
    "body text": ([START, {**BODY, "body": "text"}], "`body` is bytes, not str"),
    "body none": ([START, {**BODY, "body": None}], "`body` is bytes, not NoneType"),
    "path relative": (
        [START, {"type": "http.response.pathsend", "path": "a"}],
        "needs an absolute path",
    ),
    "path missing": (
        [START, {"type": "http.response.pathsend", "path": "/no/such"}],
        "No such file",
    ),
    "path of a folder": (
        [START, {"type": "http.response.pathsend", "path": "/proc"}],
        "no regular file",
    ),
    "path first": (
        [{"type": "http.response.pathsend", "path": "/proc"}],
        "http.response.start comes first",
    ),
    "zero copy of text": (
        [START, {"type": "http.response.zerocopysend", "file": "text"}],
        "a file with a descriptor",
    ),
    "zero copy offset": (
        [START, {"type": "http.response.zerocopysend", "file": 0, "offset": -1}],
        "offset is a number",
    ),
    "hints of numbers": (
        [{"type": "http.response.early_hint", "links": [1 << 40]}],
        "`link` is bytes, not int",
    ),
    "two lengths": (
        [start(headers=[(b"content-length", b"1"), (b"Content-Length", b"1")]), BODY],
        "one content-length",
    ),
}
#: The same after the response has begun: it is reset.
LATE: dict[str, tuple[list[Any], str]] = {
    "no end": ([START, MORE], "with more_body false"),
    "no trailers": ([start(trailers=True), MORE, BODY], "http.response.trailers at the end"),
    "no body after": ([START, MORE, START], "with more_body false at the end"),
    "body after trailers": ([start(trailers=True), MORE, BODY, BODY], "trailers comes next"),
    "length above": (
        [header(b"content-length", b"1"), MORE, BODY],
        "longer than the announced",
    ),
    "length below": ([header(b"content-length", b"3"), MORE, BODY], "1 bytes shorter"),
    "trailers of text": (
        [start(trailers=True), MORE, BODY, {**TRAILERS, "headers": [("a", "b")]}],
        "pairs of bytes",
    ),
    "hints late": (
        [START, MORE, {"type": "http.response.early_hint", "links": []}],
        "http.response.body comes next",
    ),
}


def test_what_is_invalid_before_the_response(caplog: pytest.LogCaptureFixture) -> None:
    async def application(scope: Any, receive: Any, send: Any) -> None:
        for message in EARLY[scope["path"][1:]][0]:
            await send(message)

    async def main() -> None:
        async with talking(application, OFF) as client:
            for name, (_, told) in EARLY.items():
                caplog.clear()
                response = await client.request("GET", "/" + name.replace(" ", "%20"))
                assert response.status == 500, name
                assert await response.read() == b"Internal Server Error\n"
                [record] = caplog.records
                line = f"{record.getMessage()} {record.exc_info and record.exc_info[1]}"
                assert told in line, name
                assert f"GET /{name.replace(' ', '%20')} (" in line

    run(main)


def test_what_is_invalid_in_a_response(caplog: pytest.LogCaptureFixture) -> None:
    async def application(scope: Any, receive: Any, send: Any) -> None:
        for message in LATE[scope["path"][1:]][0]:
            await send(message)

    async def main() -> None:
        async with talking(application, OFF) as client:
            for name, (_, told) in LATE.items():
                caplog.clear()
                with pytest.raises(StreamResetError):
                    await text(client, "/" + name.replace(" ", "%20"))
                [record] = caplog.records
                line = f"{record.getMessage()} {record.exc_info and record.exc_info[1]}"
                assert told in line, name

    run(main)


def test_a_body_of_items_that_are_no_bytes() -> None:
    body = memoryview(array("I", [1, 2, 3]))

    async def main() -> None:
        async with talking(answering(body), OFF) as client:  # type: ignore[arg-type]
            assert await text(client) == body.tobytes()

    run(main)


def test_failures(caplog: pytest.LogCaptureFixture) -> None:
    async def application(scope: Any, receive: Any, send: Any) -> None:
        match scope["path"]:
            case "/exit":
                raise SystemExit(1)
            case "/exit-in-a-group":
                raise BaseExceptionGroup("of a nursery", [SystemExit(1), ValueError("a")])
            case "/group":
                raise ExceptionGroup("both", [ValueError("a"), ValueError("b")])
            case "/after":
                await answering(b"whole")(scope, receive, send)
        raise KeyError("a bug")

    async def main() -> None:
        async with talking(application, OFF) as client:
            for path in ("/", "/exit", "/exit-in-a-group", "/group"):
                assert (await client.request("GET", path)).status == 500
            assert await text(client, "/after") == b"whole"
            assert await text(client, "/after") == b"whole"

    run(main)
    assert "a bug" in caplog.text
    assert "failed after its response" in caplog.text


def test_what_follows_a_complete_response_is_an_error_of_the_application() -> None:
    caught: list[Exception] = []

    async def application(scope: Any, receive: Any, send: Any) -> None:
        await answering(b"whole")(scope, receive, send)
        for message in (START, BODY, TRAILERS):
            with pytest.raises(RuntimeError, match="nothing comes after it") as info:
                await send(message)
            caught.append(info.value)
        assert (await receive())["type"] == "http.disconnect"

    async def main() -> None:
        async with talking(application, OFF) as client:
            assert await text(client) == b"whole"
        assert len(caught) == 3

    run(main)


def test_one_that_never_answers(caplog: pytest.LogCaptureFixture) -> None:
    cancelled: list[str] = []

    async def application(scope: Any, receive: Any, send: Any) -> None:
        try:
            if scope["path"] == "/held":
                await send(START)
                await trio.sleep(7)
                await send(BODY)
            else:
                await trio.sleep_forever()
        except trio.Cancelled:
            cancelled.append(scope["path"])
            raise

    async def main() -> None:
        async with talking(application, AsgiConfig(lifespan="off", answer_seconds=4)) as client:
            began = trio.current_time()
            response = await client.request("GET", "/never")
            assert response.status == 504
            assert 3 < trio.current_time() - began < 7
            assert await text(client, "/held") == b"x"  # its start counts
            assert cancelled == ["/never"]

    run(main)
    assert "find out what it waits for, or set answer_seconds" in caplog.text


def test_one_that_does_not_go_on(caplog: pytest.LogCaptureFixture) -> None:
    """Waiting for the client, and a pause that is shorter than the limit, end no response."""
    cancelled: list[str] = []
    finished: list[str] = []

    async def application(scope: Any, receive: Any, send: Any) -> None:
        try:
            await send(START)
            if scope["path"] != "/held":
                await send({**MORE, "body": b"x"})
            match scope["path"]:
                case "/pauses":
                    for _ in range(6):
                        await trio.sleep(3)
                        await send({**MORE, "body": b"x"})
                case "/receives":
                    assert (await receive())["body"] == b"late"
                case "/background":
                    await send(BODY)
                    await trio.sleep(20)
                    finished.append(scope["path"])
                    return
                case "/caught":
                    with pytest.raises(TypeError):
                        await send({**MORE, "body": 7})
                    await trio.sleep_forever()
                case "/gone":
                    assert (await receive())["type"] == "http.disconnect"
                    await trio.sleep_forever()
                case _:
                    await trio.sleep_forever()
            await send(BODY)
        except trio.Cancelled:
            cancelled.append(scope["path"])
            raise

    async def main() -> None:
        config = AsgiConfig(lifespan="off", answer_seconds=None, silence_seconds=4)
        async with talking(application, config) as client:
            began = trio.current_time()
            async with await client.open("GET", "/hangs") as response:
                await response.send_eof()
                with pytest.raises(StreamResetError) as info:
                    await response.read()
            assert info.value.code == http3.ErrorCode.INTERNAL_ERROR
            assert 3 < trio.current_time() - began < 7
            assert (await client.request("GET", "/held")).status == 504
            assert cancelled == ["/hangs", "/held"]
            assert await text(client, "/pauses") == b"x" * 8
            async with await client.open("POST", "/receives") as response:
                await trio.sleep(10)
                await response.send_all(b"late")
                await response.send_eof()
                assert await response.read() == b"xx"
            assert cancelled == ["/hangs", "/held"]
            assert await text(client, "/background") == b"xx"
            await trio.sleep(30)
            assert finished == ["/background"]
            async with await client.open("POST", "/gone") as response:
                await response.wait_headers()
            with pytest.raises(StreamResetError):
                await text(client, "/caught")
            await trio.sleep(10)
            assert sorted(cancelled[2:]) == ["/caught", "/gone"]

    run(main)
    assert caplog.text.count("find out what it waits for, or set silence_seconds") == 4
    assert caplog.text.count("4 s, and 504 is sent: find out") == 1  # of the held one


@pytest.mark.parametrize("how", ["stop", "close"])
def test_a_client_that_leaves(how: str, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    ended: list[Any] = []

    async def application(scope: Any, receive: Any, send: Any) -> None:
        await receive()
        if scope["path"] == "/waits":
            ended.append(await receive())
            with pytest.raises(DisconnectedError):
                await send(START)
            ended.append(await receive())
            raise KeyError("no bug: its client has left")
        await send(START)
        while True:
            await send({**MORE, "body": bytes(100_000)})

    async def main() -> None:
        async with serving(application, OFF) as (server, stack):
            async with http3.open_client(stack, SERVER, tls=TRUSTING) as client:
                for path in ("/waits", "/sends"):
                    response = await client.open("GET", path)
                    await response.send_eof()
                    if path == "/sends":
                        await response.wait_headers()
                    await trio.sleep(1)
                    if how == "stop":
                        await response.aclose()
            await server._until_idle()
            assert [each["type"] for each in ended] == ["http.disconnect"] * 2
            assert server.statistics.errors == 0

    run(main)
    assert not caplog.records


def test_a_response_that_its_client_leaves_unread() -> None:
    ended: list[BaseException] = []

    async def application(scope: Any, receive: Any, send: Any) -> None:
        try:
            await answering(bytes(100_000))(scope, receive, send)
        except DisconnectedError as error:
            ended.append(error)
            raise

    async def main() -> None:
        config = http3.Http3Config(slow_seconds=5)
        async with (
            serving(application, OFF, quic=SMALL, http3_config=config) as (server, stack),
            http3.open_client(stack, SERVER, tls=TRUSTING) as client,
        ):
            response = await client.request("GET", "/")
            await trio.sleep(15)
            with pytest.raises(StreamResetError):
                await response.read()
            statistics = server.statistics
            assert (statistics.requests, statistics.slow, statistics.errors) == (1, 1, 0)
        assert len(ended) == 1

    run(main)
