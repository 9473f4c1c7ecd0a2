"""What is built and installed: every folder as `kvblend.<folder>`, nothing beside it, and a light SDK."""

import os
import shutil
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

import kvblend

ROOT = Path(__file__).resolve().parent.parent
FOLDERS = sorted(link.name for link in (ROOT / "src" / "kvblend").iterdir() if link.is_symlink())


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the sdist of a clean copy of the tree, and the wheel made from that sdist."""
    tree = tmp_path_factory.mktemp("tree") / "kvblend"
    names = ["pyproject.toml", "README.md", "LICENSE", "src", *FOLDERS]
    tree.mkdir()
    for name in names:
        if (ROOT / name).is_dir():
            ignored = shutil.ignore_patterns("__pycache__", "*.egg-info")
            shutil.copytree(ROOT / name, tree / name, symlinks=True, ignore=ignored)
        elif (ROOT / name).exists():
            shutil.copy(ROOT / name, tree / name)
    subprocess.run(
        [sys.executable, "-m", "build", "--no-isolation", "--outdir", tree / "dist", tree], check=True, timeout=120
    )
    return tree / "dist"


def modules_of_the_tree() -> set[str]:
    """Every module at the repository's root folders, as a path below `kvblend/`."""
    return {path.relative_to(ROOT).as_posix() for folder in FOLDERS for path in (ROOT / folder).rglob("*.py")}


def test_wheel_holds_every_module_and_no_other_top_level_name(built: Path) -> None:
    (wheel,) = built.glob("*.whl")
    names = zipfile.ZipFile(wheel).namelist()
    assert {name.partition("/")[0] for name in names} == {"kvblend", f"kvblend-{kvblend.__version__}.dist-info"}
    assert {f"kvblend/{module}" for module in modules_of_the_tree()} <= set(names)
    assert "kvblend/py.typed" in names
    assert any(name.endswith("licenses/LICENSE") for name in names)


def test_sdist_holds_every_module(built: Path) -> None:
    (sdist,) = built.glob("*.tar.gz")
    with tarfile.open(sdist) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    assert {f"src/kvblend/{module}" for module in modules_of_the_tree()} <= names


@pytest.mark.parametrize("folder", FOLDERS)
def test_every_folder_is_a_package(folder: str) -> None:
    assert (ROOT / folder / "__init__.py").is_file()


@pytest.mark.parametrize("module", ["kvblend", "kvblend.core", "kvblend.core.rest", "kvblend.sdk"])
def test_import_pulls_in_no_torch(module: str) -> None:
    code = (
        f"import sys, {module}; print(sorted({{'torch', 'vllm', 'transformers', 'langchain_core'}} & set(sys.modules)))"
    )
    environment = {**os.environ, "PYTHONSAFEPATH": "1"}
    run = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    assert run.stdout.strip() == "[]"


def test_no_folder_is_importable_by_its_bare_name() -> None:
    code = f"from importlib.util import find_spec; print([name for name in {FOLDERS} if find_spec(name)])"
    environment = {**os.environ, "PYTHONSAFEPATH": "1"}
    run = subprocess.run(
        [sys.executable, "-c", code], env=environment, cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert run.stdout.strip() == "[]"
