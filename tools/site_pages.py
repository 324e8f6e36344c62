"""What the site shows of the repository beside ``docs/``: a hook of MkDocs, named in ``mkdocs.yml``.

Pages link to each other, to examples and to sources as they lie in the repository, so that the links work wherever the
repository is read. Here each link becomes one to the page of that file: ``README.md`` is the first page, notebooks are
pages with their outputs, and any other file that a page links to is shown as it is, below ``files/``.
"""

from __future__ import annotations

import base64
import json
import posixpath
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File, Files

ROOT = Path(__file__).parent.parent
PAGES = {
    "README.md": "index.md",
    "CONTRIBUTING.md": "contributing.md",
    "SECURITY.md": "security.md",
    "CHANGELOG.md": "changelog.md",
    "benches/NOTES.md": "bench-notes.md",
}
LANGUAGES = {
    ".py": "python",
    ".sh": "sh",
    ".yml": "yaml",
    ".yaml": "yaml",
    ".jsonl": "json",
    ".cpp": "cpp",
    ".h": "cpp",
}
LINK = re.compile(r"(?<=\]\()(?!https?:|mailto:|#)([^)\s#]+)(#[^)\s]*)?(?=\))")


def on_files(files: Files, config: Any) -> Files:
    """Adds the pages that do not lie in ``docs/``, and all files that a page links to."""
    texts = {path: (ROOT / path).read_text(encoding="utf-8") for path in PAGES}
    for file in list(files):
        if file.src_uri.endswith(".md"):
            texts[f"docs/{file.src_uri}"] = file.content_string
        elif file.src_uri.endswith(".ipynb"):
            page, pictures = notebook_page(ROOT / "docs" / file.src_uri)
            texts[f"docs/{file.src_uri}"] = page
            files.append(File.generated(config, site_path(f"docs/{file.src_uri}"), content=page))
            for name, picture in pictures.items():
                files.append(File.generated(config, name, content=picture))
    for path in PAGES:
        files.append(File.generated(config, PAGES[path], content=texts[path]))
    for path in sorted(shown_as_they_are(texts)):
        files.append(File.generated(config, site_path(path), content=page_of(path)))
    return files


def on_page_markdown(markdown: str, page: Any, config: Any, files: Files) -> str:
    """The links of a page, from paths in the repository to paths in the site."""
    source = page.file.src_uri
    if source.startswith("files/"):
        return markdown
    origin = next((path for path, target in PAGES.items() if target == source), f"docs/{source}")
    return LINK.sub(lambda found: site_link(found, origin, source), markdown)


def site_link(found: re.Match[str], origin: str, source: str) -> str:
    path = target_of(found[1], origin)
    if not (ROOT / path).exists():
        return found[0]  # MkDocs reports it
    return posixpath.relpath(site_path(path), posixpath.dirname(source) or ".") + (found[2] or "")


def target_of(link: str, origin: str) -> str:
    """The path, in the repository, that a link of the file ``origin`` means."""
    return posixpath.normpath(posixpath.join(posixpath.dirname(origin), link))


def site_path(path: str) -> str:
    """Where the site has a file of the repository."""
    if path in PAGES:
        return PAGES[path]
    if path.startswith("docs/"):
        return re.sub(r"\.ipynb$", ".md", path.removeprefix("docs/"))
    return f"files/{path}/index.md" if (ROOT / path).is_dir() else f"files/{path}.md"


def shown_as_they_are(texts: dict[str, str]) -> set[str]:
    """Files and folders outside ``docs/`` to which a page links, and the files in those folders."""
    linked = {target_of(link[1], origin) for origin, text in texts.items() for link in LINK.finditer(text)}
    shown = {path for path in linked if path not in PAGES and not path.startswith("docs/") and (ROOT / path).exists()}
    return shown.union(*(files_in(path) for path in shown))


def files_in(path: str) -> list[str]:
    if not (ROOT / path).is_dir():
        return []
    found = (file for file in (ROOT / path).iterdir() if file.is_file() and file.suffix in (*LANGUAGES, ".md", ""))
    return sorted(f"{path}/{file.name}" for file in found)


def page_of(path: str) -> str:
    """A file as a block of code, a folder as a list."""
    head = f"# {posixpath.basename(path)}\n\n`{path}`\n\n"
    if (ROOT / path).is_dir():
        start, names = posixpath.dirname(site_path(path)), files_in(path)
        rows = (f"- [`{posixpath.basename(name)}`]({posixpath.relpath(site_path(name), start)})" for name in names)
        return head + "\n".join(rows) + "\n"
    return head + fenced((ROOT / path).read_text(encoding="utf-8"), LANGUAGES.get(Path(path).suffix, "text"))


def fenced(text: str, language: str) -> str:
    fence = "`" * max(3, *(len(run) + 1 for run in re.findall(r"`+", text)), 3)
    return f"{fence}{language}\n{text.rstrip()}\n{fence}\n"


def notebook_page(path: Path) -> tuple[str, dict[str, bytes]]:
    """A notebook as a page, and its pictures by their place in the site."""
    notebook = json.loads(path.read_text(encoding="utf-8"))
    parts, pictures = [], {}
    for number, cell in enumerate(notebook["cells"]):
        source = "".join(cell["source"])
        if cell["cell_type"] == "markdown":
            parts.append(source)
            continue
        parts.append(fenced(source, "python"))
        for kind, output in outputs_of(cell):
            if kind == "text":
                parts.append(fenced(output, "text"))
            else:
                name = f"{path.stem}-{number}.png"
                pictures[name] = base64.b64decode(output)
                parts.append(f"![the picture that the cell draws]({name})")
    link = f"Also as a notebook: [{path.name}]({path.name}){{ download }}"
    return "\n\n".join([parts[0], link, *parts[1:]]) + "\n", pictures


def outputs_of(cell: dict[str, Any]) -> Iterator[tuple[str, str]]:
    for output in cell["outputs"]:
        if output["output_type"] == "stream":
            yield "text", "".join(output["text"])
        else:
            yield "picture", "".join(output["data"]["image/png"])
