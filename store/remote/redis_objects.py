"""Objects in Redis or Valkey, one server or a cluster."""

from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager, suppress
from functools import partial
from typing import Any

from kvblend.store.remote.objects import RemoteFullError, RemoteObjects
from kvblend.store.remote.redis_bulk import MAX_OBJECT_BYTES, ErrorReplyError, get_bulk
from kvblend.store.remote.tls_files import TLSFiles

__all__ = ["RedisObjects"]

SMALL_BYTES = 6000
"""What is smaller is joined into one packet, as redis-py does by default."""
CONNECT_S, ANSWER_S = 0.5, 5.0


class RedisObjects(RemoteObjects):
    """An object is a string under `kvblend:{<passage's folder>}/<name in it>`, and a set of each passage's names lies
    beside it: the braces keep all of one passage in one slot of a cluster.

    url: `redis://host:port/db` or `rediss://...`; with `cluster`, of any of its servers.
    """

    name = "redis"

    def __init__(self, url: str, *, cluster: bool, username: str | None, password: str | None, tls: TLSFiles) -> None:
        import redis
        from redis.backoff import NoBackoff
        from redis.connection import Encoder, PythonRespSerializer
        from redis.retry import Retry

        self._redis, self._cluster = redis, cluster
        # redis-py knows what each error stands for, and whom to ask in a cluster that has changed.
        moved = (redis.exceptions.ConnectionError, ConnectionError) if cluster else ()
        self._ask_again: tuple[type[Exception], ...] = (ErrorReplyError, *moved)
        options: dict[str, Any] = {
            "username": username,
            "password": password,
            "socket_connect_timeout": CONNECT_S,
            "socket_timeout": ANSWER_S,
            "retry": Retry(NoBackoff(), 0),  # redis-py's own retries take seconds to say that a server is dead
            "protocol": 2,
            **tls.given,
        }
        if not cluster:  # which takes none
            encoder = Encoder(encoding="utf-8", encoding_errors="strict", decode_responses=False)
            options["command_packer"] = PythonRespSerializer(SMALL_BYTES, encoder.encode)  # hiredis's copies values
        self.location = url
        make = redis.RedisCluster.from_url if cluster else redis.Redis.from_url
        with self._errors():
            self._client: Any = make(url, **options)

    def exist(self, names: Collection[str]) -> set[str]:
        with self._errors():
            pipeline = self._client.pipeline(transaction=False)
            for name in names:
                pipeline.exists(_key(name))
            return {name for name, there in zip(names, pipeline.execute(), strict=True) if there}

    def get(self, name: str) -> memoryview | None:
        key = _key(name)
        with self._errors():
            try:
                return self._bulk(key)
            except self._ask_again:
                data = self._client.get(key)
                return None if data is None else memoryview(data)

    def put(self, name: str, data: memoryview) -> bool:
        if len(data) > MAX_OBJECT_BYTES:
            raise RemoteFullError(f"{len(data)} bytes are over the {MAX_OBJECT_BYTES} that a value may have")
        with self._errors():
            pipeline = self._client.pipeline(transaction=True)
            pipeline.set(_key(name), data, nx=True)
            pipeline.sadd(_names_key(_folder(name)), name)
            return bool(pipeline.execute()[0])

    def delete(self, names: Collection[str]) -> int:
        num_deleted = 0
        with self._errors():
            for name in names:
                pipeline = self._client.pipeline(transaction=True)
                pipeline.delete(_key(name))
                pipeline.srem(_names_key(_folder(name)), name)
                num_deleted += pipeline.execute()[0]
        return num_deleted

    def names_in(self, folder: str) -> set[str]:
        with self._errors():
            return {name.decode() for name in self._client.smembers(_names_key(folder))}

    def claim(self, name: str, seconds: float) -> Callable[[], object] | None:
        lock = self._client.lock(f"{_key(name)}/claim", timeout=seconds, blocking=False, thread_local=False)
        with self._errors():
            return partial(self._give_back, lock) if lock.acquire() else None

    def close(self) -> None:
        self._client.close()

    def _give_back(self, lock: Any) -> None:
        with self._errors(), suppress(self._redis.exceptions.LockError):  # its time was over
            lock.release()

    def _bulk(self, key: str) -> memoryview | None:
        server = self._client
        if self._cluster:
            server = server.get_redis_connection(server.get_node_from_key(key))
        connection = server.connection_pool.get_connection()
        try:
            return get_bulk(connection, key)
        except ErrorReplyError:
            raise
        except BaseException:
            connection.disconnect()
            raise
        finally:
            server.connection_pool.release(connection)

    @contextmanager
    def _errors(self) -> Iterator[None]:
        try:
            yield
        except self._redis.exceptions.RedisError as error:
            if isinstance(error, self._redis.exceptions.OutOfMemoryError):
                raise RemoteFullError(str(error)) from error
            raise OSError(f"{type(error).__name__}: {error}") from error


def _folder(name: str) -> str:
    return name.rsplit("/", 1)[0]


def _key(name: str) -> str:
    folder, own = name.rsplit("/", 1)
    return f"kvblend:{{{folder}}}/{own}"


def _names_key(folder: str) -> str:
    return f"kvblend:{{{folder}}}"
