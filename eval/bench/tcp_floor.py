"""How fast plain TCP brings so many bytes from another process of this host, and takes them there."""

import multiprocessing
import socket
import statistics
import time
from collections.abc import Callable
from contextlib import closing
from multiprocessing.connection import Connection

__all__ = ["tcp_floors"]

REPEATS = 12
TIMEOUT_S = 60.0


def tcp_floors(num_bytes: int) -> dict[str, float]:
    """GB/s {put, get}: `num_bytes` sent on one connection and acknowledged; asked for and received. Medians.

    The memory at both ends was touched before.
    """
    own, others = multiprocessing.Pipe()
    # A process of its own, as a server is; not a fork, which would have this one's threads' locks.
    server = multiprocessing.get_context("spawn").Process(target=_serve, args=(others, num_bytes), daemon=True)
    server.start()
    try:
        if not own.poll(TIMEOUT_S):
            raise TimeoutError(f"the process at the other end did not start within {TIMEOUT_S:.0f} s")
        with closing(socket.create_connection(("127.0.0.1", own.recv()), timeout=TIMEOUT_S)) as client:
            data = bytearray(b"x") * num_bytes

            def put() -> None:
                client.sendall(b"p")
                client.sendall(data)
                _fill(client, memoryview(data)[:1])

            def get() -> None:
                client.sendall(b"g")
                _fill(client, memoryview(data))

            return {"put": num_bytes / _median_s(put) / 1e9, "get": num_bytes / _median_s(get) / 1e9}
    finally:
        server.terminate()
        server.join()


def _serve(pipe: Connection, num_bytes: int) -> None:
    listener = socket.create_server(("127.0.0.1", 0))
    data = bytearray(b"x") * num_bytes
    pipe.send(listener.getsockname()[1])
    client, _ = listener.accept()
    while op := client.recv(1):
        if op == b"p":
            _fill(client, memoryview(data))
        client.sendall(data if op == b"g" else b"a")


def _fill(source: socket.socket, memory: memoryview) -> None:
    done = 0
    while done < len(memory):
        if (count := source.recv_into(memory[done:])) == 0:
            raise ConnectionResetError("the other end closed the connection")
        done += count


def _median_s(work: Callable[[], None]) -> float:
    times = []
    for _ in range(REPEATS):
        began = time.perf_counter()
        work()
        times.append(time.perf_counter() - began)
    return statistics.median(times)
