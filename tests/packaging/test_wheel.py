"""The wheel that `make wheel` leaves in dist/, installed into a fresh environment: it needs no checkout and no make."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import sysconfig
import tarfile
import venv
import zipfile
from importlib.metadata import version
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent.parent
DIST = ROOT / "dist"

pytestmark = pytest.mark.wheel


def the_only(pattern: str) -> Path:
    found = sorted(DIST.glob(pattern))
    if len(found) != 1:
        pytest.fail(f"{DIST} has {len(found)} files {pattern}; expected one: make wheel")
    return found[0]


@pytest.fixture(scope="module")
def wheel() -> Path:
    return the_only("*.whl")


@pytest.fixture(scope="module")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A fresh environment with the wheel, that sees the torch of this one, and all else but seamfast."""
    place = tmp_path_factory.mktemp("environment")
    venv.create(place / "env", with_pip=False, symlinks=True)
    lent = place / "lent"
    lent.mkdir()
    for entry in Path(sysconfig.get_path("purelib")).iterdir():
        if not re.match(r"_*(editable_*)?seamfast", entry.name):
            (lent / entry.name).symlink_to(entry)
    (site,) = (place / "env" / "lib").glob("python*/site-packages")
    (site / "lent.pth").write_text(f"{lent}\n", encoding="utf-8")
    # Without an index: whatever the wheel asks for and is not there ends the install.
    options = ["--quiet", "--no-index", "--disable-pip-version-check"]
    pip = [sys.executable, "-m", "pip", "--python", str(place / "env" / "bin" / "python"), "install"]
    done = subprocess.run([*pip, *options, str(wheel)], capture_output=True, text=True, env=environment(place))
    assert done.returncode == 0, done.stderr
    return place / "env"


def environment(home: Path) -> dict[str, str]:
    """Nothing that leads to this checkout."""
    kept = {name: os.environ[name] for name in ("LANG", "TMPDIR") if name in os.environ}
    return kept | {"PATH": os.defpath, "HOME": str(home), "OMP_NUM_THREADS": "1", "MPLBACKEND": "Agg"}


def run(installed: Path, *command: str, cwd: Path) -> str:
    done = subprocess.run(
        [str(installed / "bin" / command[0]), *command[1:]],
        cwd=cwd,
        env=environment(cwd),
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_wheel_has_a_manylinux_tag(wheel: Path) -> None:
    name = rf"seamfast-{re.escape(version('seamfast'))}-cp\d+-cp\d+-manylinux_2_\d+_\w+(\.manylinux\w+)*\.whl"
    assert re.fullmatch(name, wheel.name), wheel.name


def test_wheel_holds_the_package_as_it_is_and_nothing_else(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        packed = {name: archive.read(name) for name in archive.namelist() if not re.search(r"\.dist-info/|/$", name)}
    compiled = {name for name in packed if ".so" in name}
    assert {name.split(".")[0] for name in compiled if name.startswith("seamfast/")} == {
        "seamfast/_native",
        "seamfast/_confine",
    }
    sources = [path for path in (ROOT / "seamfast").rglob("*") if path.suffix in (".py", ".json", ".typed")]
    expected = {str(path.relative_to(ROOT)): path.read_bytes() for path in [*sources, ROOT / "seamfast" / "py.typed"]}
    assert {name: data for name, data in packed.items() if name not in compiled} == expected


def test_source_distribution_builds_elsewhere() -> None:
    with tarfile.open(the_only("*.tar.gz")) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    assert {"pyproject.toml", "setup.py", "LICENSE", "README.md", "csrc/module.cpp"} <= names
    assert not [name for name in names if name.endswith((".so", ".pyc"))]


def test_wheel_runs_without_the_checkout(installed: Path, tmp_path: Path) -> None:
    code = "import seamfast, seamfast.report; print(seamfast.__file__); seamfast.report.schema()"
    place = Path(run(installed, "python", "-c", code, cwd=tmp_path).strip())
    assert place.is_relative_to(installed)
    found = json.loads(run(installed, "seamfast", "doctor", "--json", cwd=tmp_path))
    assert {row["backend"]: row["available"] for row in found["backends"]}["cpp"] is True


def test_demo_runs_from_the_wheel(installed: Path, tmp_path: Path) -> None:
    out = run(installed, "seamfast", "demo", cwd=tmp_path)
    assert "Fidelity" in out
    made = {path.name for path in (tmp_path / "seamfast-demo").iterdir()}
    assert {"report.json", "sanitized"} <= made
