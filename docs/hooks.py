"""What MkDocs shows beside the pages of docs/: pages of the repository's root, pictures, studies and notebooks.

Pages link to each other as they lie in the repository, so that links work there too; the site's links are made of them.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import TYPE_CHECKING

from mkdocs.exceptions import PluginError
from mkdocs.structure.files import File

if TYPE_CHECKING:
    from mkdocs.config.defaults import MkDocsConfig
    from mkdocs.structure.files import Files
    from mkdocs.structure.pages import Page

ROOT = Path(__file__).parent.parent
PAGES = ("README.md", "BENCHMARKS.md", "CHANGELOG.md", "CONTRIBUTING.md")


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the pages of the root, the pictures and the studies."""
    for page in PAGES:
        files.append(File.generated(config, page, abs_src_path=str(ROOT / page)))
    for picture in sorted((ROOT / "studies" / "pictures").glob("*.png")):
        files.append(File.generated(config, f"studies/pictures/{picture.name}", abs_src_path=str(picture)))
    for path in sorted([*ROOT.glob("studies/*.py"), *ROOT.glob("studies/*.yaml"), *ROOT.glob("examples/*.ipynb")]):
        files.append(File.generated(config, page_of(path.relative_to(ROOT).as_posix()), content=shown(path)))
    return files


def page_of(path: str) -> str:
    """Return the page that shows a study or a notebook: `studies/digits-py.md` of `studies/digits.py`."""
    return re.sub(r"\.(py|yaml|ipynb)$", r"-\1.md", path)


def shown(path: Path) -> str:
    """Return what the page of a study or of a notebook says: its code, and a notebook's text."""
    text = path.read_text(encoding="utf-8")
    if path.suffix == ".ipynb":
        cells = [(cell["cell_type"] == "code", "".join(cell["source"])) for cell in json.loads(text)["cells"]]
        parts = [f"```python\n{source}\n```" if code else source for code, source in cells]
        return "\n\n".join(parts) + "\n"
    language = path.suffix.removeprefix(".").replace("py", "python")
    return f"# {path.name}\n\n```{language}\n{text}```\n"


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Turn links of the repository into links of the site."""
    folder = ROOT if page.file.src_uri in PAGES else ROOT / "docs" / Path(page.file.src_uri).parent

    def link(found: re.Match[str]) -> str:
        place, anchor = found[1], found[2] or ""
        path = (folder / place).resolve()
        if not path.is_relative_to(ROOT):
            return found[0]
        inside = path.relative_to(ROOT).as_posix().removeprefix("docs/")
        target = page_of(inside) if re.fullmatch(r"(studies|examples)/\w+\.(py|yaml|ipynb)", inside) else inside
        depth = page.file.src_uri.count("/")
        return f"]({'../' * depth}{target}{anchor})"

    return re.sub(r"\]\((?!\w+:|#)([^)#\s]+)(#[^)\s]*)?\)", link, markdown)


def on_post_page(output: str, page: Page, config: MkDocsConfig) -> None:
    """Refuse a page that would fetch something from elsewhere when it is read."""
    if found := re.search(
        r'<(?:script|img|iframe|link rel="(?:stylesheet|preconnect|preload)")[^>]*"https?:[^>]*>', output
    ):
        raise PluginError(f"{page.file.src_uri} must fetch nothing from elsewhere but has {found[0]}")
