"""Makes the SDK's synchronous client of the asynchronous one: `make sdk`."""

import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import unasync

SDK = Path(__file__).parents[2] / "sdk"
SYNCHRONOUS = SDK / "synchronous" / "client.py"

NAMES = {
    "AsyncClient": "Client",
    "AsyncBaseTransport": "BaseTransport",
    "aclose": "close",
    "aread": "read",
    "aiter_text": "iter_text",
    "asyncio": "time",
}
"""What has another name where nothing is awaited, beside the protocols and types that unasync knows."""


def synchronous_client() -> str:
    """Return the source of the synchronous client, formatted."""
    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder) / "asynchronous" / "client.py"
        source.parent.mkdir()
        shutil.copyfile(SDK / "asynchronous" / "client.py", source)
        rule = unasync.Rule("/asynchronous/", "/synchronous/", additional_replacements=NAMES)
        unasync.unasync_files([str(source)], [rule])
        made = (Path(folder) / "synchronous" / "client.py").read_text()
    for command in (["check", "--select", "I,UP028", "--fix", "--unsafe-fixes", "--quiet"], ["format"]):
        ruff = [sys.executable, "-m", "ruff", *command, "--stdin-filename", str(SYNCHRONOUS), "-"]
        made = subprocess.run(ruff, input=made, text=True, stdout=subprocess.PIPE, check=True).stdout
    return made


if __name__ == "__main__":
    SYNCHRONOUS.write_text(synchronous_client())
