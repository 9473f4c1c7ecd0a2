"""Remote tiers by URL."""

from importlib.util import find_spec
from urllib.parse import SplitResult, parse_qs, urlsplit, urlunsplit

from kvblend.core.errors import InvalidRequestError
from kvblend.core.settings import Settings
from kvblend.store.peers.addresses import SCHEME
from kvblend.store.remote.objects import RemoteObjects
from kvblend.store.remote.redis_objects import RedisObjects
from kvblend.store.remote.remote_tier import RemoteTier
from kvblend.store.remote.s3_objects import S3Objects
from kvblend.store.tier import Tier

__all__ = ["remote_objects", "remote_tiers"]

KNOWN = "redis://, rediss://, s3://, nixl://"


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

        redis://host:port/db      rediss:// for TLS; ?cluster=1 for a cluster, ?ca=<path> for its certificate authority
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
        case scheme:
            raise InvalidRequestError(
                f"KVBLEND_REMOTE's {scheme!r} is no remote tier; there are {KNOWN}", param="KVBLEND_REMOTE"
            )


def _redis(parts: SplitResult, options: dict[str, str], username: str | None, password: str | None) -> RedisObjects:
    _require("redis", "redis")
    _check_options(options, {"cluster", "ca"})
    return RedisObjects(
        urlunsplit(parts._replace(query="")),
        cluster=options.get("cluster", "0") not in ("0", ""),
        username=username,
        password=password,
        ca_path=options.get("ca"),
    )


def _s3(parts: SplitResult, options: dict[str, str]) -> S3Objects:
    _require("obstore", "s3")
    _check_options(options, {"endpoint", "region"})
    if not parts.netloc:
        raise InvalidRequestError("KVBLEND_REMOTE's s3:// names no bucket", param="KVBLEND_REMOTE")
    return S3Objects(
        parts.netloc, parts.path.strip("/"), endpoint=options.get("endpoint"), region=options.get("region")
    )


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
