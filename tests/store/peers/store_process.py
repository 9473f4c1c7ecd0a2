"""A process that opens a store, says so, and does what each line of its input asks.

    python -m tests.store.peers.store_process SETTINGS

`put N`, `fetch N`: prints `ok`, or `miss`. It ends with its input.
"""

import json
import sys

import torch

from kvblend.core.settings import Settings
from kvblend.store import Deadline, StoredPassageKV, TieredStore
from tests.store.samples import make_key, make_kv


def main() -> None:
    with TieredStore.from_settings(Settings(**json.loads(sys.argv[1]))) as store:
        print("open", flush=True)
        for line in sys.stdin:
            word, number = line.split()[0], int(line.split()[1])
            if word == "put":
                store.put(make_key(number), make_kv(number), capture_position=0)
                print("ok", flush=True)
                continue
            file = store.open_many([make_key(number)], Deadline.after(2.0)).get(make_key(number))
            if file is None:
                print("miss", flush=True)
                continue
            assert isinstance(file, StoredPassageKV)
            with file:
                assert torch.equal(file.read(), make_kv(number))
            print("ok", flush=True)


if __name__ == "__main__":
    main()
