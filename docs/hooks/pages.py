"""Put files from outside docs/ and notebooks on the site as pages, and lead every link to where its target is on the site.

The pages are written for a reader of the repository: a link names a file. On the site, a link to a file that is a page or a
picture of the site leads there; a link to any other file of the repository becomes plain text.
"""

import json
import posixpath
import re
from pathlib import Path, PurePosixPath

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

from docs.hooks.notebook import as_page

ROOT = Path(__file__).parents[2]
BORROWED = {
    "index.md": "README.md",
    "demo.md": "stage1_extract/demo/README.md",
    "scenes-hard.md": "stage1_extract/demo/hard/README.md",
    "changelog.md": "CHANGELOG.md",
    "contributing.md": "CONTRIBUTING.md",
}
"""Pages of the site whose text is a file outside docs/: that file, by the page's path on the site."""
ON_THE_SITE = {source: page for page, source in BORROWED.items()}
CODE = r"^```.*?^```"
LINK = r"(?P<label>\[[^\]\n]*(?:\n[^\]\n]+)?\])\((?!\w+:|#)(?P<target>[^)#\s]+)(?P<anchor>#[^)\s]*)?\)"
PICTURE = r"(?P<attribute>src|srcset)=\"(?!\w+:)(?P<file>[^\"]+)\""
CODE_LINK_OR_PICTURE = re.compile(f"{CODE}|{LINK}|{PICTURE}", re.DOTALL | re.MULTILINE)


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the borrowed pages to the files of the site, and put a page in the place of each notebook."""
    for page, source in BORROWED.items():
        files.append(File.generated(config, page, abs_src_path=str(ROOT / source)))
    for notebook in [file for file in files if file.src_uri.endswith(".ipynb")]:
        text, pictures = as_page(json.loads(notebook.content_string), PurePosixPath(notebook.src_uri).stem)
        files.remove(notebook)
        files.append(File.generated(config, _page_of(notebook.src_uri), content=text))
        for name, content in pictures.items():
            files.append(
                File.generated(config, posixpath.join(posixpath.dirname(notebook.src_uri), name), content=content)
            )
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Lead the links of a page, which name files of the repository, to pages of the site; code stays as it is."""
    own = page.file.src_uri
    if page.parent is None:  # no other page is beside it, so that its text may have the room of their list
        page.meta.setdefault("hide", ["navigation"])
    source = BORROWED.get(own, f"docs/{own}")

    def on_the_site(target: str) -> str | None:
        """Return the path from this page to a file of the repository that is on the site, and None for any other file."""
        target = posixpath.normpath(posixpath.join(posixpath.dirname(source), target))
        there = ON_THE_SITE.get(target, _page_of(target.removeprefix("docs/")))
        known = files.get_file_from_path(there) is not None
        return posixpath.relpath(there, posixpath.dirname(own) or ".") if known else None

    def moved(found: re.Match[str]) -> str:
        if found["file"]:
            return f'{found["attribute"]}="{on_the_site(found["file"]) or found["file"]}"'
        if not found["target"]:
            return found[0]
        there = on_the_site(found["target"])
        if there is None:
            return found["label"][1:-1]
        label = f"[{_title(files, own, there)}]" if found["label"] == f"[{found['target']}]" else found["label"]
        return f"{label}({there}{found['anchor'] or ''})"

    return CODE_LINK_OR_PICTURE.sub(moved, markdown)


def _page_of(path: str) -> str:
    return f"{path.removesuffix('.ipynb')}.md" if path.endswith(".ipynb") else path


def _title(files: Files, own: str, there: str) -> str:
    """Return the first heading of a page: the text of a link whose text was the path of the page."""
    page = files.get_file_from_path(posixpath.normpath(posixpath.join(posixpath.dirname(own), there)))
    return page.content_string.partition("# ")[2].partition("\n")[0] if page and page.is_documentation_page() else there
