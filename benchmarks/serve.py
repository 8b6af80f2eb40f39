"""A model behind `facerec serve` under concurrent clients: requests per second, errors, the server's memory.

    python benchmarks/serve.py models:/facerec@champion [--clients 8] [--seconds 60] [--picture a.jpg ...] [--hostile]

Each client asks for the embedding of one picture after another, over a new connection each. Without --picture, they
are rendered faces. With --hostile it is measured again with one client more, which sends the most costly requests that
are known, one after the other. The exit code is 1 if a good request failed, an answer was not what the same picture
gave at first, or the hostile client more than doubles the 99th percentile of the others.
"""

from __future__ import annotations

import argparse
import base64
import http.client
import io
import json
import os
import signal
import socket
import statistics
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
from itertools import cycle
from pathlib import Path
from typing import Any

import numpy as np
import psutil
from PIL import Image

from facerec.data.demo.person import Person
from facerec.data.demo.render import SEED, render

START_SECONDS = 300
SCAN = b"\xff\xda"  # the marker of a JPEG's scan
HEADERS = {"Content-Type": "application/json"}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("model", help="as of `facerec serve`, such as models:/NAME@ALIAS")
    parser.add_argument("--clients", type=int, default=8)
    parser.add_argument("--seconds", type=float, default=60.0)
    parser.add_argument("--picture", type=Path, nargs="*", help="files to ask about")
    parser.add_argument("--hostile", action="store_true", help="beside a hostile client, too")
    args = parser.parse_args()
    files = [path.read_bytes() for path in args.picture or ()] or rendered(16)
    bodies = [body(file) for file in files]
    port = free_port()
    server = subprocess.Popen(
        [sys.executable, "-m", "facerec", "serve", args.model, "--port", str(port)],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    try:
        start = time.monotonic()
        wait_for(port, server)
        print(f"answers {time.monotonic() - start:.1f} s after its start")
        expected = [ask(port, one)[1] for one in bodies]  # also loads whatever is loaded lazily
        good = partial(client, port, bodies, expected)
        ok, quiet = measure(good, server.pid, args.clients, args.seconds)
        if args.hostile:
            with beside(port):
                well, hostile = measure(good, server.pid, args.clients, args.seconds)
            print(f"99 %: {1000 * hostile:.0f} ms / {1000 * quiet:.0f} ms = {hostile / quiet:.2f}")
            ok = ok and well and hostile <= 2 * quiet
    finally:
        os.killpg(server.pid, signal.SIGTERM)
        server.wait(30)
    sys.exit(0 if ok else 1)


def measure(good: Any, pid: int, clients: int, seconds: float) -> tuple[bool, float]:
    """Prints what the clients saw; whether all went well, and the 99th percentile in seconds."""
    before = memory(pid)
    begun = time.monotonic()
    with ThreadPoolExecutor(clients) as pool:
        jobs = [pool.submit(good, k, begun + seconds) for k in range(clients)]
        results = [result for job in jobs for result in job.result()]
    took, after = time.monotonic() - begun, memory(pid)
    outcomes = Counter(outcome for outcome, _ in results)
    times = [taken for _, taken in results]
    print(f"{clients} clients for {took:.0f} s: {len(results) / took:.1f} requests per second")
    median, slow = statistics.median(times), float(np.percentile(times, 99))
    print(f"a request takes {1000 * median:.0f} ms in the median, {1000 * slow:.0f} ms at 99 %")
    errors = {name: n for name, n in outcomes.items() if name != "ok"}
    print(f"errors: {sum(errors.values())} of {len(results)} {errors or ''}")
    print(f"resident memory: {before:.0f} MiB before, {after:.0f} MiB after")
    return not errors, slow


@contextmanager
def beside(port: int) -> Iterator[None]:
    """A hostile client sends request after request meanwhile; prints what it was answered."""
    done, answers, bodies = threading.Event(), [], hostile_bodies()

    def attack() -> None:
        for name, data in cycle(bodies.items()):
            if done.is_set():
                return
            start = time.monotonic()
            try:
                outcome = ask(port, data)[0]
            except (OSError, http.client.HTTPException) as error:
                outcome = type(error).__name__
            answers.append((name, outcome, time.monotonic() - start))

    with ThreadPoolExecutor(1) as pool:
        attacker = pool.submit(attack)
        try:
            yield
        finally:
            done.set()
            attacker.result()
    for (name, outcome), n in Counter(answer[:2] for answer in answers).items():
        longest = max(taken for *what, taken in answers if what == [name, outcome])
        print(f"hostile: {name}: {n} times {outcome}, at most {longest:.1f} s")


def hostile_bodies() -> dict[str, bytes]:
    """Requests that are tiny and costly, or as large as they may be."""
    canvas = encoded(Image.new("RGB", (8900, 8900)), "WEBP", lossless=True)
    jpeg = encoded(Image.new("L", (8900, 8900)), "JPEG", progressive=True)
    first = jpeg.index(SCAN)
    second = jpeg.index(SCAN, first + 1)
    scan = jpeg[second : second + 2 + int.from_bytes(jpeg[second + 2 : second + 4], "big")]
    faces = rendered(64)
    return {
        "1,024 rows of a huge canvas": body(
            *[canvas + bytes([n % 256, n // 256]) for n in range(1024)]
        ),
        "1,024 rows of one huge canvas": body(*[canvas] * 1024),
        "7,000 scans": body(jpeg[:-2] + 7000 * (scan + bytes(8)) + jpeg[-2:]),
        "57 MB of {}": b'{"dataframe_records": [' + b",".join([b"{}"] * 19_000_000) + b"]}",
        "1,024 faces": body(*[faces[n % 64] + bytes([n // 64]) for n in range(1024)]),
    }


def client(
    port: int, bodies: list[bytes], expected: list[np.ndarray], first: int, end: float
) -> list[tuple[str, float]]:
    """(outcome, seconds) of requests, one after the other until `end`."""
    results = []
    number = first
    while time.monotonic() < end:
        start = time.monotonic()
        try:
            status, answer = ask(port, bodies[number % len(bodies)])
            good = status == 200 and np.allclose(answer, expected[number % len(bodies)], atol=1e-5)
            outcome = "ok" if good else f"status {status}"
        except (OSError, ValueError, http.client.HTTPException) as error:
            outcome = type(error).__name__
        results.append((outcome, time.monotonic() - start))
        number += 1
    return results


def ask(port: int, data: bytes) -> tuple[int, np.ndarray]:
    """Status, and the embedding (E,), empty where it is no 200."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=120)
    try:
        connection.request("POST", "/invocations", data, HEADERS)
        answer = connection.getresponse()
        text = answer.read()
    finally:
        connection.close()
    found = json.loads(text)["predictions"][0] if answer.status == 200 else []
    return answer.status, np.array(found, np.float32)


def rendered(people: int) -> list[bytes]:
    """PNG files of people of the demo."""
    people = [Person(SEED, number) for number in range(people)]
    return [encoded(Image.fromarray(render(p, n, 0)), "PNG") for n, p in enumerate(people)]


def encoded(image: Image.Image, kind: str, **how: Any) -> bytes:
    """The bytes of an image file."""
    file = io.BytesIO()
    image.save(file, kind, **how)
    return file.getvalue()


def body(*files: bytes) -> bytes:
    """A request for the embeddings of image files."""
    rows = [{"image": base64.b64encode(file).decode()} for file in files]
    return json.dumps({"dataframe_records": rows}).encode()


def memory(pid: int) -> float:
    """Resident MiB of a process and all that it has started."""
    process = psutil.Process(pid)
    every = [process, *process.children(recursive=True)]
    return sum(one.memory_info().rss for one in every) / 2**20


def wait_for(port: int, server: subprocess.Popen) -> None:
    """Returns when the server answers."""
    end = time.monotonic() + START_SECONDS
    while time.monotonic() < end:
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=5)
        try:
            connection.request("GET", "/ping")
            if connection.getresponse().status == 200:
                return
        except (OSError, http.client.HTTPException):
            if server.poll() is not None:
                raise SystemExit("the server ended; start it by hand to see why") from None
        finally:
            connection.close()
        time.sleep(0.2)
    raise SystemExit(f"the server has not answered for {START_SECONDS} s")


def free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


if __name__ == "__main__":
    main()
