"""What the package says of itself, and what is not said twice."""

from __future__ import annotations

import re
import sys
from pathlib import Path
from typing import Any

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

ROOT = Path(__file__).parent.parent.parent
PROJECT: dict[str, Any] = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]


def test_classifiers_name_the_versions_from_the_least_on() -> None:
    named = re.findall(r"Python :: 3\.(\d+)", "\n".join(PROJECT["classifiers"]))
    least = re.fullmatch(r">=3\.(\d+)", PROJECT["requires-python"])
    assert least is not None
    assert [int(minor) for minor in named] == list(range(int(least[1]), 15))
    assert sys.version_info[1] in [int(minor) for minor in named]


def test_install_page_names_each_extra_of_users() -> None:
    page = (ROOT / "docs" / "install.md").read_text(encoding="utf-8")
    of_developers = {name for name in PROJECT["optional-dependencies"] if name.startswith("test")}
    of_developers |= {"oracle", "bench", "docs", "dev"}
    rows = re.findall(r"^\| (`\w.*?) \|", page, re.MULTILINE)
    assert set(re.findall(r"`([\w-]+)`", " ".join(rows))) == set(PROJECT["optional-dependencies"]) - of_developers
