"""One at a time encodes a passage, among all that share a folder."""

import os
import signal
import subprocess
import sys
from contextlib import ExitStack
from pathlib import Path

from kvblend.core.settings import Settings
from kvblend.store import TieredStore
from tests.store.claim_turns import take_turns
from tests.store.samples import make_key

ROOT = Path(__file__).resolve().parents[2]
VARIANT, OTHER = make_key(1).variant, make_key(2).variant


def host(folder: Path) -> TieredStore:
    return TieredStore.from_settings(Settings(home=folder, cpu_bytes=0, disk_bytes=1 << 24))


def test_processes_of_one_folder(tmp_path: Path) -> None:
    with host(tmp_path) as one, host(tmp_path) as two:
        claim = one.claim(VARIANT)
        assert claim is not None and two.claim(VARIANT) is None and one.claim(VARIANT) is None
        other = two.claim(OTHER)
        assert other is not None
        claim()
        again = two.claim(VARIANT)
        assert again is not None and one.claim(VARIANT) is None
        again()
        other()
        assert not list((tmp_path / "kv" / ".claims").iterdir()), "a claim that was given back lies about"


def test_a_holder_that_dies_holds_nothing(tmp_path: Path) -> None:
    code = f"""
import pathlib, sys, time
from tests.store.test_claims import VARIANT, host
claim = host(pathlib.Path({str(tmp_path)!r})).claim(VARIANT)
print(claim is not None, flush=True)
time.sleep(60)
"""
    path = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
    holder = subprocess.Popen(
        [sys.executable, "-c", code], env={**os.environ, "PYTHONPATH": path}, stdout=subprocess.PIPE, text=True
    )
    assert holder.stdout is not None and holder.stdout.readline() == "True\n"
    with host(tmp_path) as store:
        assert store.claim(VARIANT) is None
        holder.send_signal(signal.SIGKILL)
        holder.wait()
        claim = store.claim(VARIANT)
        assert claim is not None
        claim()
    holder.stdout.close()


def test_one_of_many_threads_has_it(tmp_path: Path) -> None:
    """200 times in turn, four ask: it is never held twice, and the folder is empty afterwards."""
    with ExitStack() as closing:
        stores = [closing.enter_context(host(tmp_path)) for _ in range(4)]
        assert take_turns(stores, VARIANT, rounds=50) == (1, 200)
    assert not list((tmp_path / "kv" / ".claims").iterdir())
