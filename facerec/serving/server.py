"""MLflow's scoring server for a model of ours, behind a guard that refuses what would cost memory before it is parsed.

MLflow 3.17 reads and parses bodies of any length, and parses Parquet, which unpacks a few kilobytes to gigabytes. No
code of the model is run: its weights are loaded by this package.
"""

from __future__ import annotations

import asyncio
import http
import json
import socket
import sys
from collections.abc import Awaitable, Callable, MutableMapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import uvicorn
from mlflow.models import Model
from mlflow.pyfunc import PyFuncModel, scoring_server

from facerec.errors import InputError
from facerec.runtime.text import brief, one_line
from facerec.serving.limits import Limits
from facerec.serving.pyfunc import FaceModel
from facerec.tracking.registry import signature

# As ASGI has them; a connection's scope is such a mapping too.
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[Message, Receive, Send], Awaitable[None]]

# Content types, and what separates values in them; base64 has none of these.
MARKS = {"application/json": b",:[{", "text/csv": b",\n"}
MARKS_PER_ROW = 16
OTHER_MARKS = 1024
BODIES = 4  # of the largest, held at a time
GET_PATHS = ("/ping", "/health", "/version")
DRAINED = 8  # of the largest body, of one whose length is not announced
PAUSE = 0.005  # seconds between two pieces of a body that is thrown away, each of which has 64 KiB


class Refusal(Exception):
    """Why a request is not passed on: status, and a sentence."""

    def __init__(self, status: int, sentence: str) -> None:
        super().__init__(sentence)
        self.status = status


NOT_FOUND = Refusal(404, f"POST /invocations is served, and GET {', '.join(GET_PATHS)}")


class Guard:
    """An ASGI application in front of another one. GET requests of `GET_PATHS` always pass.

    Args:
        app: what requests are passed on to, with their whole body.
        max_body: bytes; a body above it is answered with 413. Bodies of four times as much are held at a time.
        max_requests: at the same time; more are answered with 503.
        limits: `rows` bounds what a body may hold (400), `seconds` how long it may take to arrive (408).
    """

    def __init__(self, app: App, max_body: int, max_requests: int, limits: Limits) -> None:
        self._app, self._max_body, self._limits = app, max_body, limits
        self._max_requests, self._requests = max_requests, 0
        self._held = 0  # bytes of bodies
        self._parser = ThreadPoolExecutor(1)

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        """Passes a request on, or refuses it."""
        if scope["type"] == "lifespan":  # the server starts
            # A thread for each request, most of which wait.
            threads = ThreadPoolExecutor(self._max_requests + 1)
            asyncio.get_running_loop().set_default_executor(threads)
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        if scope["method"] != "POST":
            # Not FastAPI's own pages, which load scripts from elsewhere.
            known = scope["path"] in GET_PATHS
            await (self._app(scope, receive, send) if known else _answer(send, NOT_FOUND))
            return
        body = bytearray()
        self._requests += 1
        try:
            await self._accept(scope, receive, body)
            await self._app(scope, _replayed(bytes(body), receive), send)
        except Refusal as refusal:
            await _answer(send, refusal)
        finally:
            self._requests -= 1
            self._held -= len(body)

    async def _accept(self, scope: Message, receive: Receive, body: bytearray) -> None:
        """Reads the body of a request that may be passed on."""
        if self._requests > self._max_requests:
            raise Refusal(
                503, f"more than {self._max_requests} requests at a time: try again later"
            )
        headers = {name.lower(): value.decode("latin-1") for name, value in scope["headers"]}
        kind = headers.get(b"content-type", "").partition(";")[0].strip().lower()
        if kind not in MARKS:
            raise Refusal(415, f"content type {kind[:100]!r}: {' or '.join(MARKS)} is expected")
        try:
            await asyncio.wait_for(self._read(headers, receive, body), self._limits.seconds)
        except asyncio.TimeoutError:
            raise Refusal(
                408, f"the body has not arrived within {self._limits.seconds:g} s"
            ) from None
        loop = asyncio.get_running_loop()
        await loop.run_in_executor(self._parser, _check, body, kind, self._limits.rows)

    async def _read(self, headers: dict[bytes, str], receive: Receive, body: bytearray) -> None:
        """Reads the body; one that is too long is read on for a while, slowly, since a sender who writes reads no
        answer."""
        too_long = Refusal(413, f"a body of more than {self._max_body:,} bytes (--max-body-mb)")
        length = headers.get(b"content-length", "")
        announced = int(length) if length.isdecimal() and len(length) < 20 else 0
        if announced > 2 * self._max_body:
            raise too_long
        size, more = 0, True
        while more:
            message = await receive()
            if message["type"] == "http.disconnect":
                raise Refusal(400, "the sender has gone")
            part, more = message.get("body", b""), message.get("more_body", False)
            size += len(part)
            if size > DRAINED * self._max_body:
                raise too_long
            if max(size, announced) > self._max_body:
                await asyncio.sleep(PAUSE)
            elif self._held + len(part) > BODIES * self._max_body:
                raise Refusal(503, "too many large requests at a time: try again later")
            else:
                body += part
                self._held += len(part)
        if size > self._max_body:
            raise too_long


def _check(body: bytearray, kind: str, rows: int) -> None:
    """Refuses a body that holds too much, or is not what it says it is."""
    if sum(map(body.count, MARKS[kind])) > MARKS_PER_ROW * rows + OTHER_MARKS:
        raise Refusal(400, f"more values than {rows} rows have: send fewer rows")
    if kind == "application/json":
        try:
            json.loads(body)
        except (ValueError, RecursionError) as error:  # MLflow's answer would repeat the body
            raise Refusal(400, f"not valid JSON: {one_line(error)[:200]}") from None


def _replayed(body: bytes, receive: Receive) -> Receive:
    """`receive` of a request whose body has been read."""
    messages = [{"type": "http.request", "body": body, "more_body": False}]

    async def replay() -> Message:
        return messages.pop() if messages else await receive()

    return replay


async def _answer(send: Send, refusal: Refusal) -> None:
    """As MLflow answers an error. The connection ends, since the rest of a body may still be on its way."""
    headers = [(b"content-type", b"application/json"), (b"connection", b"close")]
    name = http.HTTPStatus(refusal.status).name
    body = json.dumps({"error_code": name, "message": str(refusal)}).encode()
    await send({"type": "http.response.start", "status": refusal.status, "headers": headers})
    await send({"type": "http.response.body", "body": body})


class _Served:
    """FaceModel as MLflow's pyfunc calls it."""

    def __init__(self, model: FaceModel) -> None:
        self._model = model

    def predict(self, model_input: Any, params: dict[str, Any] | None = None) -> Any:
        return self._model.predict(None, model_input, params)


def application(source: str, device: str, max_body: int, max_requests: int) -> Guard:
    """The guarded server of a model.

    Args:
        source, device: as of FaceEmbedder.load.
        max_body, max_requests: as of Guard.

    Raises:
        InputError: no such model or device, or a variable FACEREC_LIMIT_... is out of range.
    """
    model = FaceModel()
    model.load(source, device, served=True)
    flavors = {"python_function": {"loader_module": "mlflow.pyfunc.model"}}
    pyfunc = PyFuncModel(Model(signature=signature(), flavors=flavors), _Served(model))
    return Guard(scoring_server.init(pyfunc), max_body, max_requests, model.limits)


def listen(host: str, port: int) -> socket.socket:
    """A socket to serve at.

    Raises:
        InputError: the address is in use, or none of this machine.
    """
    try:
        family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0][0]
        return socket.create_server((host, port), family=family, backlog=2048)
    except (OSError, UnicodeError) as error:  # UnicodeError: a name that cannot be one
        reason = getattr(error, "strerror", None) or one_line(error)
        raise InputError(f"host={brief(host)}, port={port}: {reason}") from None


def serve(app: Guard, place: socket.socket) -> None:
    """Answers requests until SIGINT or SIGTERM."""
    # Each of a network's hundred operations waits so long for a thread that parses a large body.
    sys.setswitchinterval(0.0005)
    config = uvicorn.Config(app, log_level="warning", access_log=False)
    uvicorn.Server(config).run([place])
