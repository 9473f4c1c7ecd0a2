"""The dtype that tests run models in: pytest's option `--dtype`, by default what `kvblend serve` would choose here."""

import pytest

from kvblend.cli.engine import default_dtype

__all__ = ["DTYPES", "add_dtype_option", "dtype"]

DTYPES = ("float32", "bfloat16")


def add_dtype_option(parser: pytest.Parser) -> None:
    """Give pytest the option `--dtype`, which xdist passes on to its workers."""
    parser.addoption(
        "--dtype",
        choices=DTYPES,
        default=default_dtype() or "bfloat16",
        help="what every model in vLLM runs in; right in either on any machine, slow where it has no units for it",
    )


@pytest.fixture(scope="session")
def dtype(request: pytest.FixtureRequest) -> str:
    """The name of the dtype, as vLLM takes it."""
    name: str = request.config.getoption("dtype")
    return name
