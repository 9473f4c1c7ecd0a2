"""Remote tiers by URL."""

from importlib.util import find_spec
from urllib.parse import SplitResult, parse_qs, urlsplit, urlunsplit

from kvblend.core.errors import InvalidRequestError
from kvblend.core.settings import Settings
from kvblend.store.peers.addresses import SCHEME
from kvblend.store.remote.mooncake_client import MooncakeClient
from kvblend.store.remote.mooncake_objects import MooncakeObjects
from kvblend.store.remote.objects import RemoteObjects
from kvblend.store.remote.redis_objects import RedisObjects
from kvblend.store.remote.remote_tier import RemoteTier
from kvblend.store.remote.s3_objects import S3Objects
from kvblend.store.remote.tls_files import TLSFiles
from kvblend.store.tier import Tier

__all__ = ["remote_objects", "remote_tiers"]

KNOWN = "redis://, rediss://, s3://, mooncake://, nixl://"
MIB = 1 << 20


def remote_tiers(settings: Settings, peers: Tier | None = None) -> list[Tier]:
    """The tiers that `settings.remote` names, nearest first; `peers` is the one that its `nixl://` stands for.

    Raises InvalidRequestError as `remote_objects`.
    """
    password = settings.remote_password.get_secret_value() if settings.remote_password else None
    tiers = list[Tier]()
    for url in (settings.remote or "").split():
        if peers is not None and urlsplit(url).scheme == SCHEME:
            tiers.append(peers)
        else:
            tiers.append(RemoteTier(remote_objects(url, username=settings.remote_username, password=password)))
    return tiers


def remote_objects(url: str, *, username: str | None = None, password: str | None = None) -> RemoteObjects:
    """A client of the store at `url`; it may not be reached yet.

        redis://host:port/db      ?cluster=1 for a cluster
        rediss://host:port/db     the same over TLS; ?ssl_ca_certs=<path>, ?ssl_certfile=<path>, ?ssl_keyfile=<path>
        mooncake://host:port      a Mooncake store's master; ?replicas=<number>, ?buffer=<bytes>, ?segment=<bytes>,
                                  ?host=<own address>
        s3://bucket/prefix        ?region=<name>, ?endpoint=<http address> for what is not Amazon's

    S3's credentials come from the provider's own environment variables. Raises InvalidRequestError where the URL is
    none of these, has credentials in it, or the client's package is not installed.
    """
    parts = urlsplit(url)
    if parts.username or parts.password:
        raise InvalidRequestError(
            f"KVBLEND_REMOTE names a store at {parts.hostname!r} with credentials in its address: give them as "
            "KVBLEND_REMOTE_USERNAME and KVBLEND_REMOTE_PASSWORD",
            param="KVBLEND_REMOTE",
        )
    options = {name: values[-1] for name, values in parse_qs(parts.query, keep_blank_values=True).items()}
    match parts.scheme:
        case "redis" | "rediss":
            return _redis(parts, options, username, password)
        case "s3":
            return _s3(parts, options)
        case "mooncake":
            return _mooncake(parts, options)
        case scheme:
            raise InvalidRequestError(
                f"KVBLEND_REMOTE's {scheme!r} is no remote tier; there are {KNOWN}", param="KVBLEND_REMOTE"
            )


def _redis(parts: SplitResult, options: dict[str, str], username: str | None, password: str | None) -> RedisObjects:
    _require("redis", "redis")
    _check_options(options, {"cluster", "ssl_ca_certs", "ssl_certfile", "ssl_keyfile"})
    return RedisObjects(
        urlunsplit(parts._replace(query="")),
        cluster=options.get("cluster", "0") not in ("0", ""),
        username=username,
        password=password,
        tls=TLSFiles.from_options(options, secure=parts.scheme == "rediss"),
    )


def _s3(parts: SplitResult, options: dict[str, str]) -> S3Objects:
    _require("obstore", "s3")
    _check_options(options, {"endpoint", "region"})
    if not parts.netloc:
        raise InvalidRequestError("KVBLEND_REMOTE's s3:// names no bucket", param="KVBLEND_REMOTE")
    return S3Objects(
        parts.netloc, parts.path.strip("/"), endpoint=options.get("endpoint"), region=options.get("region")
    )


def _mooncake(parts: SplitResult, options: dict[str, str]) -> MooncakeObjects:
    _require("mooncake", "mooncake")
    _check_options(options, {"buffer", "host", "replicas", "segment"})
    if not parts.hostname or not _port(parts):
        raise InvalidRequestError("KVBLEND_REMOTE's mooncake:// names no host:port of a master", param="KVBLEND_REMOTE")
    client = MooncakeClient(
        parts.netloc,
        host=options.get("host"),
        segment_bytes=_number(options, "segment", 0, least=0),
        buffer_bytes=_number(options, "buffer", 512 * MIB, least=MIB),
        num_replicas=_number(options, "replicas", 1, least=1),
    )
    return MooncakeObjects(client)


def _port(parts: SplitResult) -> int | None:
    try:
        return parts.port
    except ValueError:
        return None


def _number(options: dict[str, str], name: str, default: int, *, least: int) -> int:
    text = options.get(name, str(default))
    if not text.isdecimal() or int(text) < least:
        raise InvalidRequestError(
            f"KVBLEND_REMOTE's {name}={text!r} is no whole number from {least} on", param="KVBLEND_REMOTE"
        )
    return int(text)


def _require(package: str, extra: str) -> None:
    if find_spec(package) is None:
        raise InvalidRequestError(
            f"KVBLEND_REMOTE needs the package {package!r}: install kvblend[{extra}]", param="KVBLEND_REMOTE"
        )


def _check_options(options: dict[str, str], known: set[str]) -> None:
    unknown = sorted(set(options) - known)
    if unknown:
        raise InvalidRequestError(
            f"KVBLEND_REMOTE's option {unknown[0]!r} is none of {', '.join(sorted(known))}", param="KVBLEND_REMOTE"
        )
