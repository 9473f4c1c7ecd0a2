"""The file that keeps counts over a restart."""

from pathlib import Path

import pytest

from kvblend.api.prompt.neighbours import PairLedger, PassageVariant
from kvblend.api.prompt.neighbours.pair_ledger import MAX_COLLECTIONS

AB = PassageVariant("a", "b")


def _count(ledger: PairLedger, collection: str, variant: PassageVariant = AB) -> float:
    return ledger.look(collection, lambda counts: counts.count(variant))


def test_counts_are_there_after_a_restart(tmp_path: Path) -> None:
    path = tmp_path / "pairs.sqlite3"
    ledger = PairLedger(path)
    for _ in range(3):
        ledger.note("one", ["a", "b"])
    ledger.note("two", ["a", "b"])
    expected = _count(ledger, "one")
    assert expected > 2.9
    ledger.close()
    ledger = PairLedger(path)
    assert _count(ledger, "one") == pytest.approx(expected)
    assert _count(ledger, "two") == pytest.approx(1.0)
    assert _count(ledger, "three") == 0.0
    ledger.close()


def test_what_was_saved_survives_a_crash(tmp_path: Path) -> None:
    path = tmp_path / "pairs.sqlite3"
    ledger = PairLedger(path)
    ledger.note("one", ["a", "b"])
    ledger.save()
    ledger.note("one", ["a", "b"])  # and never closed
    assert _count(PairLedger(path), "one") == pytest.approx(1.0)


def test_deleted_passages_leave_the_file_at_once(tmp_path: Path) -> None:
    path = tmp_path / "pairs.sqlite3"
    ledger = PairLedger(path)
    ledger.note("one", ["secret-a", "b", "c"])
    ledger.note("two", ["secret-a", "b"])
    ledger.save()
    ledger.forget("one", {"secret-a"})
    ledger.forget("two")
    assert b"secret" not in b"".join(file.read_bytes() for file in tmp_path.glob("pairs.sqlite3*"))
    ledger.close()
    ledger = PairLedger(path)
    assert _count(ledger, "one", PassageVariant("b", "c")) > 0
    assert _count(ledger, "one", PassageVariant("secret-a", "b")) == 0
    assert _count(ledger, "two", PassageVariant("secret-a", "b")) == 0
    ledger.close()


def test_more_collections_than_stay_in_memory(tmp_path: Path) -> None:
    ledger = PairLedger(tmp_path / "pairs.sqlite3")
    for number in range(MAX_COLLECTIONS + 5):
        ledger.note(str(number), ["a", "b"])
    assert all(_count(ledger, str(number)) > 0 for number in range(MAX_COLLECTIONS + 5))
    ledger.close()
