"""What mkdocs builds the site with: pages that are no file in docs/, and links that leave docs/.

The reference has one page for each folder of modules, made here and listed nowhere: a new module
appears by itself.
"""

import os
import re
from pathlib import Path

import griffe
from mkdocs.exceptions import PluginError
from mkdocs.structure.files import File

ROOT = Path(__file__).parents[1]
PACKAGES = ("persongen_jax", "data_pipeline")
# Files of the repository's root that are pages of the site.
PAGES = {"CONTRIBUTING.md": "contributing.md", "CHANGELOG.md": "changelog.md"}
LINK = re.compile(r"(?<!!)\[([^\]]+)\]\((?!\w+:|#)([^)\s#]+)(#[^)\s]*)?\)")


def modules() -> dict[str, list[str]]:
    """{folder: its modules' dotted names, the package itself first}; private ones are left out."""
    found = {}
    for package in PACKAGES:
        for path in sorted((ROOT / package).rglob("*.py")):
            parts = path.relative_to(ROOT).with_suffix("").parts
            name = ".".join(part for part in parts if part != "__init__")
            if not parts[-1].startswith("_") or parts[-1] in ("__init__", "__main__"):
                found.setdefault(".".join(parts[:-1]), []).append(name)
    return {folder: sorted(names) for folder, names in found.items()}


def on_config(config):
    """Adds the reference to the navigation."""
    pages = [{folder: f"reference/{folder}.md"} for folder in modules()]
    config.nav.append({"Reference": pages})
    return config


def on_files(files, config):
    """Adds the reference, and the pages of the repository's root."""
    for folder, names in modules().items():
        text = f"# {folder}\n\n" + "".join(f"::: {name}\n" for name in names)
        files.append(File.generated(config, f"reference/{folder}.md", content=text))
    for name, page in PAGES.items():
        text = with_links((ROOT / name).read_text(encoding="utf-8"), ROOT / name)
        files.append(File.generated(config, page, content=text))
    readme = ROOT / "README.md"  # not a page, but its links are checked
    with_links(readme.read_text(encoding="utf-8"), readme)
    return files


def on_page_markdown(markdown, page, **_):
    """Puts the links of the pages in docs/ right; the root's pages had this when they were read."""
    path = ROOT / "docs" / page.file.src_uri
    return with_links(markdown, path) if path.is_file() else markdown


def with_links(markdown: str, path: Path) -> str:
    """A page's links as the site has them; files that are no part of it keep their names only."""

    def place(link):
        text, target, anchor = link.groups()
        found = Path(os.path.normpath(path.parent / target))
        if not found.exists():
            raise PluginError(f"{path.relative_to(ROOT)} links to {target}: there is no such file")
        name = found.relative_to(ROOT).as_posix()
        if found.suffix in (".md", ".ipynb") and (name in PAGES or name.startswith("docs/")):
            return f"[{text}]({PAGES.get(name, name.removeprefix('docs/'))}{anchor or ''})"
        return text if "`" in text else f"`{text}`"

    return LINK.sub(place, markdown)


class Docstrings(griffe.Extension):
    """Makes of our docstrings what the parser of Google's style takes.

    Sphinx's :func:`name` becomes `name`; "width, height: of the image" becomes an entry for each.
    """

    ROLE = re.compile(r":(?:func|class|meth|mod|attr):`~?([^`]+)`")
    SHARED = re.compile(r"^( {4,8})(\w+(?:, \w+)+): (.+(?:\n\1 +\S.*)*)", re.MULTILINE)

    def on_instance(self, *, obj, **_):
        if obj.docstring:
            text = self.ROLE.sub(r"`\1`", obj.docstring.value)
            before, args, entries = text.partition("\nArgs:\n")
            obj.docstring.value = before + args + self.SHARED.sub(self.apart, entries)

    @staticmethod
    def apart(entry):
        indent, names, text = entry.groups()
        return "\n".join(f"{indent}{name}: {text}" for name in names.split(", "))
