"""The certificates that a client of a TLS server is given, by their files."""

import ssl
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Self

from kvblend.core.errors import InvalidRequestError

__all__ = ["TLSFiles"]


@dataclass(frozen=True)
class TLSFiles:
    """Paths of PEM files, by the names that redis-py has for them. None: the system's authorities; no certificate.

    ssl_ca_certs: of authorities that a server's certificate may be of, besides the system's. ssl_certfile,
    ssl_keyfile: of this client's own certificate and its key, which may lie in one file.
    """

    ssl_ca_certs: str | None = None
    ssl_certfile: str | None = None
    ssl_keyfile: str | None = None

    @classmethod
    def from_options(cls, options: Mapping[str, str], *, secure: bool) -> Self:
        """Those of a URL's options. Raises InvalidRequestError where one cannot be read, or nothing is `secure`."""
        own = cls(*(options.get(name) for name in ("ssl_ca_certs", "ssl_certfile", "ssl_keyfile")))
        if own.given and not secure:
            _refuse(f"KVBLEND_REMOTE's {next(iter(own.given))} needs TLS: say rediss:// instead of redis://")
        if own.ssl_keyfile is not None and own.ssl_certfile is None:
            _refuse("KVBLEND_REMOTE has ssl_keyfile without ssl_certfile")
        own._check()
        return own

    @property
    def given(self) -> dict[str, str]:
        """Those that are not None."""
        return {name: value for name, value in vars(self).items() if value is not None}

    def _check(self) -> None:
        """Load them once: a client says so only when it connects."""
        context = ssl.create_default_context()
        try:
            if self.ssl_ca_certs is not None:
                context.load_verify_locations(self.ssl_ca_certs)
        except OSError as error:  # an SSLError is one
            _refuse(f"KVBLEND_REMOTE's ssl_ca_certs={self.ssl_ca_certs!r} cannot be read: {error}")
        try:
            if self.ssl_certfile is not None:
                context.load_cert_chain(self.ssl_certfile, self.ssl_keyfile, password="")  # asks no terminal
        except OSError as error:
            key = f", ssl_keyfile={self.ssl_keyfile!r}" if self.ssl_keyfile else ""
            _refuse(f"KVBLEND_REMOTE's ssl_certfile={self.ssl_certfile!r}{key} cannot be read: {error}")


def _refuse(message: str) -> None:
    raise InvalidRequestError(message, param="KVBLEND_REMOTE")
