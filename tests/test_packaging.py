"""What is built and installed: every folder as `kvblend.<folder>`, nothing beside it, and a light client."""

import os
import re
import shutil
import subprocess
import sys
import tarfile
import zipfile
from collections.abc import Sequence
from pathlib import Path

import pytest
from reportlab.pdfgen.canvas import Canvas

import kvblend
from tests.api.scripted_service import scripted_service
from tests.environments import bare_environment, installed

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
        [sys.executable, "-m", "build", "--no-isolation", "--outdir", tree / "dist", tree], check=True, timeout=300
    )
    return tree / "dist"


def files_of_the_tree() -> set[str]:
    """Every file at the repository's root folders that a package needs, as a path below `kvblend/`."""
    files = (path for folder in FOLDERS for path in (ROOT / folder).rglob("*.*"))
    needed = {".py", ".cpp", ".h", ".json", ".txt"}
    return {path.relative_to(ROOT).as_posix() for path in files if path.suffix in needed}


def files_installed(environment: Path) -> set[str]:
    (package,) = environment.glob("lib/python*/site-packages/kvblend")
    return {path.relative_to(package).as_posix() for path in package.rglob("*.*") if path.suffix != ".pyc"}


@pytest.fixture(scope="module")
def client_environment(built: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An environment made by `pip install kvblend`."""
    (wheel,) = built.glob("*.whl")
    return installed(wheel, tmp_path_factory.mktemp("client"))


def test_wheel_holds_every_module_and_no_other_top_level_name(built: Path) -> None:
    (wheel,) = built.glob("*.whl")
    names = zipfile.ZipFile(wheel).namelist()
    assert {name.partition("/")[0] for name in names} == {"kvblend", f"kvblend-{kvblend.__version__}.dist-info"}
    assert {f"kvblend/{file}" for file in files_of_the_tree()} <= set(names)
    assert "kvblend/py.typed" in names
    console = {path.relative_to(ROOT) for path in (ROOT / "api/console").rglob("*.*") if path.suffix != ".pyc"}
    assert {f"kvblend/{path.as_posix()}" for path in console} <= set(names)
    assert any(name.endswith("licenses/LICENSE") for name in names)


def test_sdist_holds_every_file(built: Path) -> None:
    (sdist,) = built.glob("*.tar.gz")
    with tarfile.open(sdist) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    assert {f"src/kvblend/{file}" for file in files_of_the_tree()} <= names


def test_the_sdist_installs_what_the_wheel_does(built: Path, client_environment: Path, tmp_path: Path) -> None:
    (sdist,) = built.glob("*.tar.gz")
    files = files_installed(installed(sdist, tmp_path / "sdist", "--no-deps"))
    assert files == files_installed(client_environment) >= files_of_the_tree()


def test_the_client_alone_goes_through_the_readme(
    client_environment: Path, tmp_path: Path, demo_model_path: Path, embedding_model_path: Path
) -> None:
    readme = (ROOT / "README.md").read_text()
    commands = re.findall(r"^    (kvblend (?!calibrate|bench).*?)(?: +#.*)?$", readme, re.MULTILINE)
    (quickstart,) = (block for block in re.findall(r"```python\n(.*?)```", readme, re.DOTALL) if "create_coll" in block)
    assert [command.split()[1] for command in commands][:2] == ["ingest", "query"]
    work = tmp_path / "work"
    (work / "handbook").mkdir(parents=True)
    (work / "handbook" / "signs.txt").write_text("The report is signed by the harbour master.")
    (work / "intro.md").write_text("The report is signed by the harbour master.")
    page = Canvas(str(work / "rules.pdf"))
    page.drawString(72, 700, "Boats over nine metres pay forty crowns.")
    page.save()

    def run(command: str, *, url: str) -> str:
        variables = {"PATH": f"{client_environment / 'bin'}:{os.environ['PATH']}", "KVBLEND_URL": url}
        ended = subprocess.run(
            command,
            shell=True,
            cwd=work,
            env=bare_environment(**variables),
            capture_output=True,
            text=True,
            timeout=300,
        )
        assert ended.returncode == 0, ended.stderr
        return ended.stdout

    with scripted_service(tmp_path, model=demo_model_path, embedding_model=embedding_model_path) as service:
        printed = [run(command, url=service.url) for command in commands]
        assert "signs.txt" in printed[1] and "blended: of " in printed[1]
        assert "http://127.0.0.1:8000" in quickstart
        (work / "quickstart.py").write_text(quickstart.replace("http://127.0.0.1:8000", service.url))
        answer, sources, counts = run("python quickstart.py", url=service.url).splitlines()
        assert answer and sources == "['intro.md', 'rules.pdf']" and len(counts.split()) == 3


@pytest.mark.parametrize("command", ["serve demo", "demo", "calibrate demo --target 1"])
def test_a_command_that_the_client_lacks_says_what_to_install(
    client_environment: Path, tmp_path: Path, command: str
) -> None:
    run = [str(client_environment / "bin" / "kvblend"), *command.split()]
    environment = bare_environment(KVBLEND_HOME=str(tmp_path), COLUMNS="80")
    ended = subprocess.run(run, env=environment, capture_output=True, text=True, timeout=300)
    assert ended.returncode == 1
    (sentence,) = ended.stderr.splitlines()
    assert sentence.endswith("pip install 'kvblend[serve]'")


@pytest.mark.parametrize("folder", FOLDERS)
def test_every_folder_is_a_package(folder: str) -> None:
    assert (ROOT / folder / "__init__.py").is_file()


@pytest.mark.parametrize("module", ["kvblend", "kvblend.core.rest", "kvblend.sdk", "kvblend.cli.app"])
def test_an_import_pulls_in_little(module: str) -> None:
    """A command of the client begins as soon as httpx, pydantic, rich and typer are imported."""
    code = f"import sys, {module}; print(*sorted({{name.partition('.')[0] for name in sys.modules}}))"
    environment = {**os.environ, "PYTHONSAFEPATH": "1"}
    run = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    heavy = {"fastapi", "faiss", "huggingface_hub", "numpy", "tokenizers", "torch", "transformers", "vllm", "zmq"}
    frameworks = {"haystack", "langchain_core", "llama_index", "openai"}
    assert set(run.stdout.split()).isdisjoint(heavy | frameworks)


@pytest.mark.parametrize(
    ("code", "left_out"),
    [
        ("import kvblend.cli.app", {"httpx", "pydantic", "markdown_it", "email"}),
        ("import kvblend.sdk", {"httpx", "pydantic", "asyncio"}),
        ("from kvblend.sdk import Client", {"asyncio", "pydantic_settings"}),
    ],
)
def test_what_is_not_needed_yet_is_not_imported(client_environment: Path, code: str, left_out: set[str]) -> None:
    """`kvblend --help` speaks to nobody, and a client that blocks has no use for asyncio."""
    told = f"import sys; {code}; print(*sorted({{name.partition('.')[0] for name in sys.modules}}))"
    run = [str(client_environment / "bin" / "python"), "-c", told]
    ended = subprocess.run(run, env=bare_environment(), capture_output=True, text=True, check=True)
    assert set(ended.stdout.split()).isdisjoint(left_out)


@pytest.mark.timed
@pytest.mark.parametrize(
    ("arguments", "most"),
    [(["-c", "from kvblend.sdk import Client"], 2.0), (["-m", "kvblend.cli", "--help"], 2.4)],
    ids=["the SDK", "the command"],
)
def test_a_client_begins_soon(client_environment: Path, arguments: list[str], most: float) -> None:
    """In CPU time, over what httpx and pydantic take, without which no request is made: 0.11 s where nothing else runs,
    so that both are under 0.3 s there."""
    python = str(client_environment / "bin" / "python")
    others, ours = ([python, "-c", "import httpx, pydantic"], [python, *arguments])
    pairs = [(_cpu_seconds(others), _cpu_seconds(ours)) for _ in range(6)]
    assert min(own for _, own in pairs) < most * min(other for other, _ in pairs), pairs


def _cpu_seconds(command: Sequence[str]) -> float:
    """User and system time of a process of its own."""
    process = subprocess.Popen(command, env=bare_environment(), stdout=subprocess.DEVNULL)
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    assert process.returncode == 0
    return usage.ru_utime + usage.ru_stime


def test_no_folder_is_importable_by_its_bare_name() -> None:
    code = f"from importlib.util import find_spec; print([name for name in {FOLDERS} if find_spec(name)])"
    environment = {**os.environ, "PYTHONSAFEPATH": "1"}
    run = subprocess.run(
        [sys.executable, "-c", code], env=environment, cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert run.stdout.strip() == "[]"
