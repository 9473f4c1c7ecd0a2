"""Environments of a user's own: what pip installs, and nothing of this one."""

import hashlib
import os
import subprocess
import sys
import tomllib
from contextlib import suppress
from pathlib import Path
from tempfile import TemporaryDirectory

__all__ = ["ENVIRONMENTS", "bare_environment", "installed", "python_with"]

ROOT = Path(__file__).resolve().parent.parent
ENVIRONMENTS = ROOT / ".cache" / "environments"


def installed(what: Path | str, folder: Path, *options: str) -> Path:
    """Install a wheel, an sdist or a requirement, from the package index that pip is told of, in an empty environment;
    returns its folder."""
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", folder], check=True, timeout=300)
    pip = [sys.executable, "-m", "pip", "--python", str(folder / "bin" / "python"), "install", "-q", "--no-compile"]
    subprocess.run([*pip, *options, str(what)], check=True, timeout=600, env=bare_environment())
    return folder


def bare_environment(**variables: str) -> dict[str, str]:
    """This process's environment without what leads to this tree."""
    return {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")} | variables


def python_with(extra: str) -> tuple[str, dict[str, str]]:
    """The interpreter of an environment that `pip install kvblend[extra] pytest` makes, made once and kept, and the
    variables that give it this tree's kvblend."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    wanted = [*project["dependencies"], *project["optional-dependencies"][extra], "pytest"]
    name = f"{extra}-{hashlib.sha256(' '.join(wanted).encode()).hexdigest()[:12]}"
    ENVIRONMENTS.mkdir(parents=True, exist_ok=True)
    if not (ENVIRONMENTS / name).is_dir():
        with TemporaryDirectory(dir=ENVIRONMENTS) as scratch, suppress(OSError):  # another process may be first
            installed(wanted[0], Path(scratch) / name, *wanted[1:]).rename(ENVIRONMENTS / name)
    variables = bare_environment(PYTHONPATH=str(ROOT / "src"), PYTHONSAFEPATH="1", PYTHONDONTWRITEBYTECODE="1")
    return str(ENVIRONMENTS / name / "bin" / "python"), variables
