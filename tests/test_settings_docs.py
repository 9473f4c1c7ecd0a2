"""docs/settings.md and `core/settings.py` say the same."""

import re
from pathlib import Path

from kvblend.core.settings import Settings

ROWS = re.compile(r"^\| `KVBLEND_(\w+)` \| (.+?) \|", re.MULTILINE)


def test_every_setting_has_a_row_with_its_default() -> None:
    docs = Path(__file__).parent.parent / "docs" / "settings.md"
    rows = {name.lower(): default.strip("`") for name, default in ROWS.findall(docs.read_text())}
    assert list(rows) == list(Settings.model_fields)
    for name, field in Settings.model_fields.items():
        if field.default is not None:
            assert rows[name] == str(field.default)
