"""What a request may cost a server: limits before decoding, decoding that can be given up, turns, and the guard."""

from __future__ import annotations

import asyncio
import http
import socket
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import psutil
import pytest
from mlflow.exceptions import MlflowException
from PIL import Image

from facerec import FaceEmbedder
from facerec.data.decoding import PictureError, measure
from facerec.errors import InputError
from facerec.serving.bounded import BoundedEmbedder, Lane, _Request, turns
from facerec.serving.decoder import Cut, Decoder, NoDecoder, TooSlow
from facerec.serving.limits import Deadline, Limits
from facerec.serving.pyfunc import FaceModel
from facerec.serving.server import Guard, listen
from tests.helpers.models import encoded, make_model, many_scans, picture, png_of_size

CUT = Cut(16, 1.0, "none", "largest", None)
FOREVER = 100.0  # seconds; nothing here takes as long


@pytest.fixture(scope="module")
def embedder(tmp_path_factory: pytest.TempPathFactory) -> FaceEmbedder:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("FACEREC_SCAN", "reference")
        folder = tmp_path_factory.mktemp("bounded") / "model"
        make_model(folder)
        return FaceEmbedder.load(folder, "cpu")


# ---- limits


def test_limits_are_variables(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FACEREC_SERVING", "1")  # which is no limit
    monkeypatch.setenv("FACEREC_LIMIT_PIXELS", "5000")
    assert Limits.from_environment() == Limits(pixels=5000)
    for name, value, message in (
        ("PIXELS", "many", r"pixels=many \(FACEREC_LIMIT_PIXELS\)"),
        ("SECONDS", "0", "greater than 0"),
        ("PIXEL", "5", "no limit FACEREC_LIMIT_PIXEL; did you mean FACEREC_LIMIT_PIXELS"),
    ):
        with monkeypatch.context() as wrong:
            wrong.setenv(f"FACEREC_LIMIT_{name}", value)
            with pytest.raises(InputError, match=message):
                Limits.from_environment()


def test_cost_is_measured_without_decoding() -> None:
    for kind in ("PNG", "WEBP", "TIFF", "BMP", "PPM", "GIF"):
        assert measure(encoded(Image.new("RGB", (200, 100)), kind)) == (20_000, 20_000), kind
    assert measure(png_of_size(8900, 8900)) == (8900**2, 8900**2)  # there is nothing to decode
    scans = many_scans(100, 64)
    pixels, work = measure(scans)
    assert pixels == 64**2 and work == pixels * scans.count(b"\xff\xda") > 100 * pixels
    with pytest.raises(PictureError, match="gigantic"):
        measure(png_of_size(20_000, 20_000))


def test_a_request_beyond_a_limit_is_refused_before_decoding(
    embedder: FaceEmbedder, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Decoder, "faces", None)  # would decode
    images = [encoded(picture(seed)) for seed in range(4)]
    scans = many_scans(99, 40)
    for limits, asked in (
        (Limits(bytes=sum(map(len, images)) - 1), images),
        (Limits(pixels=4 * 40 * 40 - 1), images),
        (Limits(scans=100 * 40 * 40 - 1), [images[0], scans]),
    ):
        (name,) = limits.model_fields_set
        with pytest.raises(InputError, match=f"FACEREC_LIMIT_{name.upper()}"):
            BoundedEmbedder(embedder, limits).embed(asked, asked)


def test_the_same_bytes_are_decoded_once(
    embedder: FaceEmbedder, monkeypatch: pytest.MonkeyPatch
) -> None:
    images = [encoded(picture(seed)) for seed in range(11)]
    asked = [images[0], *images, *images[::-1]]
    decoded, faces = [], Decoder.faces
    monkeypatch.setattr(
        Decoder, "faces", lambda self, part, *how: decoded.extend(part) or faces(self, part, *how)
    )
    bounded = BoundedEmbedder(embedder, Limits(pixels=11 * 40 * 40))
    found = bounded.embed(asked, asked, flip=True)
    assert decoded == images and np.allclose(found, embedder.embed(asked, flip=True), atol=1e-6)
    assert bounded.embed([], []).shape == (0, 8)
    with pytest.raises(InputError, match="the bad one: not a picture"):
        bounded.embed([images[0], b"text"], ["good", "the bad one"])


# ---- decoding that can be given up


def test_slow_decoding_is_killed_and_the_next_image_is_decoded() -> None:
    decoder, good = Decoder(), encoded(picture(1))
    try:
        (expected,) = decoder.faces([good], CUT, FOREVER)
        child = psutil.Process(decoder._child.pid)
        if hasattr(child, "rlimit"):
            assert child.rlimit(psutil.RLIMIT_AS)[0] <= 4 * 2**30
        with pytest.raises(TooSlow):
            decoder.faces([many_scans(7000, 4000)], CUT, 0.1)
        assert not child.is_running()
        assert np.array_equal(decoder.faces([good], CUT, FOREVER)[0], expected)
        decoder._child.kill()  # as the system does where memory is short
        decoder._child.wait()
        assert np.array_equal(decoder.faces([good], CUT, FOREVER)[0], expected)
    finally:
        decoder.close()


def test_a_child_that_dies_of_an_image_is_a_reason() -> None:
    decoder = Decoder()
    try:
        decoder.measure([], FOREVER)
        impossible = CUT._replace(crop="half")  # raises what no image does
        assert "decoder ended" in decoder.faces([encoded(picture(1))], impossible, FOREVER)[0]
        assert decoder.measure([encoded(picture(1))], FOREVER) == [(1600, 1600)]
    finally:
        decoder.close()


def test_a_decoder_that_cannot_start_is_not_the_image(
    embedder: FaceEmbedder, monkeypatch: pytest.MonkeyPatch
) -> None:
    bounded = BoundedEmbedder(embedder, Limits())
    bounded.check()
    monkeypatch.setattr("facerec.serving.decoder.CHILD", "raise SystemExit")
    with pytest.raises(NoDecoder):
        Decoder().measure([encoded(picture(1))], FOREVER)
    with pytest.raises(InputError, match="images cannot be decoded here"):
        BoundedEmbedder(embedder, Limits()).check()


def test_time_that_is_over_at_the_last_moment_costs_the_next_image_nothing() -> None:
    decoder, good = Decoder(), [encoded(picture(1))]
    try:
        decoder.measure(good, FOREVER)
        with pytest.raises(TooSlow), decoder._within(0.001):
            decoder._child.wait()  # all was done; the timer was faster
        assert decoder.measure(good, FOREVER) == [(1600, 1600)]
    finally:
        decoder.close()


# ---- turns


def test_turns_are_of_a_few_images_and_of_little_work() -> None:
    assert [part.stop - part.start for part in turns([1] * 20, 100, 8)] == [8, 8, 4]
    assert [part.stop - part.start for part in turns([40, 50, 20, 500, 1], 100, 8)] == [2, 1, 1, 1]
    assert list(turns([], 100)) == []


def test_a_long_request_does_not_hold_up_a_short_one() -> None:
    lane, order, queued = Lane(1, FOREVER), [], threading.Event()
    submit = lane._pool.submit
    short = threading.Thread(target=lambda: lane.run(lambda *_: order.append("short"), later))
    later = Deadline(FOREVER)

    def first(*_: Any) -> None:
        lane._pool.submit = lambda *how: (submit(*how), queued.set())[0]
        short.start()
        assert queued.wait(FOREVER)
        order.append("long")

    for turn in (first, lambda *_: order.append("long"), lambda *_: order.append("long")):
        lane.run(turn, later)
    short.join()
    assert order == ["long", "short", "long", "long"]


def test_a_request_whose_time_is_over_does_no_more_work() -> None:
    with pytest.raises(TooSlow):
        Lane(1, FOREVER).run(lambda *_: pytest.fail("it worked"), Deadline(0))


def test_a_lane_lets_so_many_wait() -> None:
    lane = Lane(1, FOREVER, at_once=1)
    refused = []

    def turn(*_: Any) -> None:
        with pytest.raises(TooSlow):
            lane.run(lambda *_: refused.append("it waited"), Deadline(FOREVER))

    lane.run(turn, Deadline(FOREVER))
    assert lane.run(lambda *_: "free again", Deadline(FOREVER)) == "free again" and not refused


def test_a_request_that_is_slow_goes_on_among_the_heavy_ones() -> None:
    allowed = []

    def turn(decoder: Decoder, seconds: float) -> str:
        allowed.append(seconds)
        if seconds < 1:
            raise TooSlow
        return decoder._niceness

    request = _Request(Lane(1, seconds=0.5), Lane(1, FOREVER, niceness=3), Deadline(FOREVER))
    assert [request.run(turn), request.run(turn)] == [3, 3] and len(allowed) == 3


def test_a_request_that_is_given_up_may_be_sent_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_model(tmp_path / "model", backbone="resnet18")
    monkeypatch.setenv("FACEREC_SERVING", "1")
    monkeypatch.setenv("FACEREC_LIMIT_SECONDS", "1e-6")
    model = FaceModel()
    model.load(tmp_path / "model", "cpu", served=True)
    frame = pd.DataFrame({"image": [encoded(picture(1))]})
    with pytest.raises(MlflowException, match="FACEREC_LIMIT_SECONDS") as caught:
        model.predict(None, frame)
    assert caught.value.get_http_status_code() == 503


# ---- the guard


JSON, CSV = b"application/json", b"text/csv"


def post(guard: Guard, *parts: bytes, kind: bytes = JSON, length: int | None = None) -> int:
    """Status of the answer to a request whose body comes in parts."""
    headers = [(b"content-type", kind)]
    headers += [] if length is None else [(b"content-length", b"%d" % length)]
    messages = [{"type": "http.request", "body": p, "more_body": True} for p in parts]
    messages[-1:] = [{**m, "more_body": False} for m in messages[-1:]]
    answers = []

    async def receive() -> dict[str, Any]:
        return messages.pop(0) if messages else await asyncio.Event().wait()

    async def send(message: dict[str, Any]) -> None:
        answers.append(message)

    scope = {"type": "http", "method": "POST", "path": "/invocations", "headers": headers}
    asyncio.run(guard(scope, receive, send))
    return answers[0]["status"]


async def echo(scope: Any, receive: Any, send: Any) -> None:
    """Keeps the body that it was passed."""
    echo.body = (await receive()).get("body")
    await send({"type": "http.response.start", "status": 200, "headers": []})


def test_the_guard_refuses_what_would_cost_memory() -> None:
    guard = Guard(echo, max_body=1000, max_requests=1, limits=Limits(rows=1))
    assert post(guard, b"[" * 500, b"]" * 500) == 200 and echo.body == b"[" * 500 + b"]" * 500
    echo.body = None
    for broken in (b"{", b"\xff" * 900, b"", b"1" * 900 + b"e"):
        assert post(guard, broken) == 400
    assert post(guard, b"x" * 600, b"x" * 401) == http.HTTPStatus.REQUEST_ENTITY_TOO_LARGE
    assert post(guard, length=2001) == 413  # without reading it
    assert post(guard, *[b"x" * 500] * 99) == 413
    assert post(guard, b"{}", kind=b"application/vnd.apache.parquet") == 415
    hasty = Guard(echo, max_body=1000, max_requests=1, limits=Limits(seconds=0.01))
    assert post(hasty) == 408  # a body that does not arrive
    wide = Guard(echo, max_body=10_000, max_requests=1, limits=Limits(rows=1))
    assert post(wide, b"[" + b"{}," * 600 + b"{}]") == 400
    assert post(wide, b"image\n" * 1100, kind=CSV) == 400
    deep = Guard(echo, max_body=10_000, max_requests=1, limits=Limits())
    assert post(deep, b"[" * 9000) == 400  # deeper than Python goes
    assert echo.body is None


def test_the_guard_lets_in_so_many_at_a_time_and_always_answers_a_ping() -> None:
    seen = []

    async def nested(scope: Any, receive: Any, send: Any) -> None:
        if scope["method"] == "GET":
            seen.append("ping")
            return
        seen.append(await asyncio.to_thread(post, guard, b"{}"))
        await guard({"type": "http", "method": "GET", "path": "/ping"}, receive, send)
        await echo(scope, receive, send)

    guard = Guard(nested, max_body=10, max_requests=1, limits=Limits())
    assert post(guard, b"{}") == 200 and seen == [503, "ping"]
    assert post(guard, b"{}") == 200  # its place is free again


def test_bodies_are_held_up_to_a_total() -> None:
    statuses = []

    async def nested(scope: Any, receive: Any, send: Any) -> None:
        if len(statuses) < 5:
            statuses.append(await asyncio.to_thread(post, guard, b"[" + b" " * 98 + b"]"))
        await echo(scope, receive, send)

    guard = Guard(nested, max_body=100, max_requests=9, limits=Limits())
    assert post(guard, b"[" + b" " * 98 + b"]") == 200 and guard._held == 0
    assert sorted(statuses) == [200, 200, 200, 503]


def test_an_address_in_use_is_one_sentence() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(InputError, match=f"host=127.0.0.1, port={port}: "):
            listen("127.0.0.1", port)
    with pytest.raises(InputError, match="host=aaa"):
        listen("a" * 64, 0)
