"""A model behind `mlflow models serve` under concurrent clients: requests per second, errors, the server's memory.

    python benchmarks/serve.py models:/facerec@champion [--clients 8] [--seconds 60] [--picture face.jpg ...]

Each client asks for the embedding of one picture after another, over a new connection each. Without --picture, they
are rendered faces. The exit code is 1 if a request failed or an answer was not what the same picture gave at first.
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
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import psutil
from PIL import Image

from facerec.data.demo import SEED, render
from facerec.data.demo_person import Person

START_SECONDS = 300
HEADERS = {"Content-Type": "application/json"}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument(
        "model", help="runs:/ID/model, models:/NAME@ALIAS, or an MLflow model folder"
    )
    parser.add_argument("--clients", type=int, default=8)
    parser.add_argument("--seconds", type=float, default=60.0)
    parser.add_argument("--picture", type=Path, nargs="*", help="files to ask about")
    args = parser.parse_args()
    files = [path.read_bytes() for path in args.picture or ()] or rendered(16)
    bodies = [body(file) for file in files]
    port = free_port()
    command = ["-m", "mlflow", "models", "serve", "-m", args.model, "--env-manager", "local"]
    server = subprocess.Popen(
        [sys.executable, *command, "--host", "127.0.0.1", "--port", str(port)],
        env={**os.environ, "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    try:
        start = time.monotonic()
        wait_for(port, server)
        print(f"answers {time.monotonic() - start:.1f} s after its start")
        ok = measure(port, server.pid, bodies, args.clients, args.seconds)
    finally:
        os.killpg(server.pid, signal.SIGTERM)
        server.wait(30)
    sys.exit(0 if ok else 1)


def measure(port: int, pid: int, bodies: list[bytes], clients: int, seconds: float) -> bool:
    """Prints what the clients saw; whether all went well."""
    expected = [ask(port, one)[1] for one in bodies]  # also loads whatever is loaded lazily
    before = memory(pid)
    end = time.monotonic() + seconds
    begun = time.monotonic()
    with ThreadPoolExecutor(clients) as pool:
        jobs = [pool.submit(client, port, bodies, expected, k, end) for k in range(clients)]
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
    return not errors


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
    files = [io.BytesIO() for _ in range(people)]
    for number, file in enumerate(files):
        Image.fromarray(render(Person(SEED, number), number, 0)).save(file, "PNG")
    return [file.getvalue() for file in files]


def body(picture: bytes) -> bytes:
    """A request for the embedding of a picture file."""
    image = base64.b64encode(picture).decode()
    return json.dumps({"dataframe_records": [{"image": image}]}).encode()


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
