"""Runs the code cells of a notebook in one namespace, in an empty folder, and writes what they print and draw into it.

    python tools/run_notebook.py docs/tutorial.ipynb

Needs no Jupyter. Times and paths that a cell prints change from run to run; nothing else should.
"""

from __future__ import annotations

import base64
import contextlib
import io
import json
import os
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

os.environ["MPLBACKEND"] = "Agg"


def outputs(notebook: dict[str, Any], name: str) -> Iterator[tuple[dict[str, Any], list[dict[str, Any]]]]:
    """Each code cell with what it printed and drew, as a notebook has them. Raises what a cell raises."""
    namespace: dict[str, Any] = {"__name__": "__main__"}
    for number, cell in enumerate(notebook["cells"]):
        if cell["cell_type"] != "code":
            continue
        printed = io.StringIO()
        with contextlib.redirect_stdout(printed):
            exec(compile("".join(cell["source"]), f"{name}, cell {number}", "exec"), namespace)
        found: list[dict[str, Any]] = []
        if printed.getvalue():
            found.append({"name": "stdout", "output_type": "stream", "text": printed.getvalue().splitlines(True)})
        found += [
            {"data": {"image/png": picture}, "metadata": {}, "output_type": "display_data"} for picture in pictures()
        ]
        yield cell, found


def pictures() -> Iterator[str]:
    """The open figures as PNG, which are closed."""
    if "matplotlib.pyplot" not in sys.modules:
        return
    import matplotlib.pyplot as plt

    for number in plt.get_fignums():
        drawn = io.BytesIO()
        plt.figure(number).savefig(drawn, format="png", dpi=100)
        plt.close(number)
        yield base64.b64encode(drawn.getvalue()).decode()


def main(path: Path) -> None:
    notebook = json.loads(path.read_text(encoding="utf-8"))
    with tempfile.TemporaryDirectory() as place:
        os.chdir(place)
        for count, (cell, found) in enumerate(outputs(notebook, path.name), start=1):
            cell["outputs"], cell["execution_count"] = found, count
    path.write_text(json.dumps(notebook, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main(Path(sys.argv[1]).resolve())
