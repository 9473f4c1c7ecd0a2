"""What a quality run has measured, a line a measurement, so that an interrupted run goes on."""

import json
from pathlib import Path
from typing import Any, NamedTuple

from kvblend.core.errors import InvalidRequestError
from kvblend.eval.quality.question_lab import Measurement

__all__ = ["MethodKey", "QualityState"]


class MethodKey(NamedTuple):
    """A method: how passages were encoded, what was selected, how much."""

    encode: str
    selector: str
    recompute_ratio: float


class QualityState:
    """Measurements by question and method, in memory and, where a path is given, appended to a JSON-lines file.

    The file's first line holds the run's settings. Raises InvalidRequestError where they are not `settings`. A state
    that is `only_read` leaves the file to the run that writes it.
    """

    def __init__(self, path: Path | None, settings: dict[str, Any], *, only_read: bool = False) -> None:
        self._path = path
        self._done: dict[tuple[int, MethodKey], Measurement] = {}
        if path is None:
            return
        lines = path.read_text().splitlines(keepends=True) if path.exists() else []
        whole = [json.loads(line) for line in lines if line.endswith("\n")]  # a killed run's last line may be torn
        if whole and whole[0] != settings:
            raise InvalidRequestError(f"{path} holds measurements of other settings: {whole[0]}")
        for row in whole[1:]:
            question = row.pop("question")
            key = MethodKey(row.pop("encode"), row.pop("selector"), row.pop("recompute_ratio"))
            self._done[question, key] = Measurement(**row)
        if only_read:
            return
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("".join([json.dumps(settings) + "\n", *(line for line in lines[1:] if line.endswith("\n"))]))

    def get(self, question: int, key: MethodKey) -> Measurement | None:
        return self._done.get((question, key))

    def put(self, question: int, key: MethodKey, measurement: Measurement) -> None:
        self._done[question, key] = measurement
        if self._path is not None:
            row = {"question": question, **key._asdict(), **vars(measurement)}
            with self._path.open("a") as file:
                file.write(json.dumps(row) + "\n")
