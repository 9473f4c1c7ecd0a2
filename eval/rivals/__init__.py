"""Selectors that only the lab runs, one a file, each from its paper; and all selectors by name.

A new one is a file here with a frozen dataclass that has `blend` (`LabSelector`), and `SELECTORS`, its name in every
row, plot and option: `SELECTORS = {"mine": MySelector()}`. Nothing else names it.
"""

import pkgutil
from collections.abc import Mapping
from importlib import import_module
from types import MappingProxyType, ModuleType

from kvblend.blend.selectors import SELECTORS, LabSelector, Serving

__all__ = ["LAB_SELECTORS"]


def _of_this_folder() -> dict[str, LabSelector]:
    """The selectors of every file here, by the names that their files give them."""
    found: dict[str, LabSelector] = {}
    for file in sorted(pkgutil.iter_modules(__path__), key=lambda file: file.name):
        module = import_module(f"{__name__}.{file.name}")
        own: Mapping[str, LabSelector] = getattr(module, "SELECTORS", {})
        unnamed = _defined(module) - {type(selector).__name__ for selector in own.values()}
        assert not unnamed, f"{module.__file__}: SELECTORS has no {', '.join(sorted(unnamed))}"
        taken = own.keys() & {*SELECTORS, *found}
        assert not taken, f"{module.__file__}: {', '.join(sorted(taken))} names another selector too"
        found.update(own)
    return found


def _defined(module: ModuleType) -> set[str]:
    """The selectors that a file defines, those without a name too."""
    classes = (each for each in vars(module).values() if isinstance(each, type) and each.__module__ == module.__name__)
    return {each.__name__ for each in classes if hasattr(each, "blend")}


LAB_SELECTORS: Mapping[str, LabSelector] = MappingProxyType(
    {**{name: Serving(selector) for name, selector in SELECTORS.items()}, **_of_this_folder()}
)
