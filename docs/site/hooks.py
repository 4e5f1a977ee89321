"""Hooks of mkdocs: pages made from conf/, and links that leave docs/ as they can be followed on the site."""

from __future__ import annotations

import os
import re
import sys
from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

sys.path.insert(0, str(Path(__file__).parent))

from reference import experiments, options  # the folder of this file is no package

LINK = re.compile(r"(?<!!)\[((?:[^\[\]]|\[[^\]]*\])*)\]\(([^)\s#]+)(#[^)\s]*)?\)")
FENCE = re.compile(r"(^```.*?^```$)", re.DOTALL | re.MULTILINE)


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the pages of all options and all experiments."""
    root = Path(config.config_file_path).parent
    pages = {
        "reference/options.md": options(root / "conf"),
        "reference/experiments.md": experiments(root / "conf" / "experiment"),
    }
    for path, text in pages.items():
        files.append(File.generated(config, path, content=text))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Return a page whose links to files outside docs/ lead to the repository, or are the names of the files."""
    docs = Path(config.docs_dir)
    root = docs.parent
    folder = (docs / page.file.src_uri).parent
    known = {file.src_uri for file in files.documentation_pages()} | {file.src_uri for file in files.media_files()}

    def followed(match: re.Match[str]) -> str:
        text, target, anchor = match.group(1), match.group(2), match.group(3) or ""
        if "://" in target or target.startswith("mailto:"):
            return match.group(0)
        path = Path(os.path.normpath(folder / target))
        if path == root / "README.md":
            return f"[{text}]({os.path.relpath(docs / 'index.md', folder)}{anchor})"
        if path.is_relative_to(docs) and path.relative_to(docs).as_posix() in known:
            return match.group(0)
        if path.suffix == ".yaml" and path.parent == root / "conf" / "experiment":
            return f"[{text}]({os.path.relpath(docs / 'reference' / 'experiments.md', folder)}#{path.stem})"
        if not path.exists():
            return match.group(0)  # mkdocs reports it
        return outside(text, path.relative_to(root).as_posix(), config.repo_url)

    return "".join(part if part.startswith("```") else LINK.sub(followed, part) for part in FENCE.split(markdown))


def outside(text: str, path: str, repository: str | None) -> str:
    """Return a link into the repository; without an address of it, the file's name behind the text, once."""
    if repository:
        return f"[{text}]({repository.rstrip('/')}/blob/main/{path})"
    return f"`{path}`" if text.strip("`") in path else f"{text} (`{path}`)"
