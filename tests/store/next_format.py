"""This store with the next file format: a newer version, in a process that shares a folder with the test's.

    python -m tests.store.next_format FOLDER

It stores passages 2 and 3, says so, and waits for a line. Then it finds its own files whole and no others, deletes
passage 1, which it does not have, and says `done`.
"""

import sys
from pathlib import Path
from types import ModuleType

import kvblend


def become_next() -> None:
    """Import the module that says which format it is as the next version's."""
    path = Path(kvblend.__path__[0]) / "store" / "key.py"
    source = path.read_text().replace("FORMAT_VERSION = 2", "FORMAT_VERSION = 3")
    module = ModuleType("kvblend.store.key")
    sys.modules[module.__name__] = module
    exec(compile(source, path, "exec"), module.__dict__)
    assert module.FORMAT_VERSION == 3


def main(folder: Path) -> None:
    from kvblend.store import DiskTier, TieredStore
    from tests.store.samples import make_key, make_kv
    from tests.store.store_samples import read

    keys = {number: make_key(number) for number in (1, 2, 3)}
    with TieredStore([DiskTier(folder, budget_bytes=1 << 24)]) as store:
        for number in (2, 3):
            store.put(keys[number], make_kv(-number), capture_position=0)
        print("stored", flush=True)
        sys.stdin.readline()
        assert set(store.lookup_many(keys.values())) == {keys[2], keys[3]}
        for number in (2, 3):
            with read(store, number) as file:
                assert file.read().equal(make_kv(-number))
        report = store.verify()
        assert report.num_files == 2 and not report.quarantined
        store.delete([keys[1].variant])
    print("done", flush=True)


if __name__ == "__main__":
    become_next()
    main(Path(sys.argv[1]))
