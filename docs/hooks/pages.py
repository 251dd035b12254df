"""Put files from outside docs/ on the site as pages, and lead every relative link to where its target is on the site.

The pages are written for a reader of the repository: a link names a file. On the site, a link to a file that is a page or a
picture of the site leads there; a link to any other file of the repository becomes plain text.
"""

import posixpath
import re
from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

ROOT = Path(__file__).parents[2]
BORROWED = {
    "index.md": "README.md",
    "demo.md": "stage1_extract/demo/README.md",
    "changelog.md": "CHANGELOG.md",
    "contributing.md": "CONTRIBUTING.md",
}
"""Pages of the site whose text is a file outside docs/: that file, by the page's path on the site."""
ON_THE_SITE = {source: page for page, source in BORROWED.items()}
CODE_OR_LINK = re.compile(
    r"^```.*?^```|(?P<label>\[[^\]\n]*(?:\n[^\]\n]+)?\])\((?!\w+:|#)(?P<target>[^)#\s]+)(?P<anchor>#[^)\s]*)?\)",
    re.DOTALL | re.MULTILINE,
)


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the borrowed pages to the files of the site."""
    for page, source in BORROWED.items():
        files.append(File.generated(config, page, abs_src_path=str(ROOT / source)))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Lead the links of a page, which name files of the repository, to pages of the site; code stays as it is."""
    own = page.file.src_uri
    source = BORROWED.get(own, f"docs/{own}")

    def moved(found: re.Match[str]) -> str:
        if found["target"] is None:
            return found[0]
        target = posixpath.normpath(posixpath.join(posixpath.dirname(source), found["target"]))
        there = ON_THE_SITE.get(target, target.removeprefix("docs/"))
        if files.get_file_from_path(there) is None:
            return found["label"][1:-1]
        label = f"[{_title(ROOT / target)}]" if found["label"] == f"[{found['target']}]" else found["label"]
        return f"{label}({posixpath.relpath(there, posixpath.dirname(own) or '.')}{found['anchor'] or ''})"

    return CODE_OR_LINK.sub(moved, markdown)


def _title(page: Path) -> str:
    """Return the first heading of a page: the text of a link whose text was the path of the page."""
    return page.read_text(encoding="utf-8").partition("# ")[2].partition("\n")[0]
