"""What mkdocs builds the site with: reference pages from docstrings, and links out of docs/.

One page for each folder of modules, made here and listed nowhere: a new module appears by itself.
"""

import re
from pathlib import Path

import griffe
from mkdocs.structure.files import File

ROOT = Path(__file__).parents[1]
PACKAGES = ("persongen_jax", "data_pipeline")


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
    """Writes the reference's pages."""
    for folder, names in modules().items():
        text = "".join(f"::: {name}\n" for name in names)
        page = File.generated(config, f"reference/{folder}.md", content=f"# {folder}\n\n{text}")
        files.append(page)
    return files


def on_page_markdown(markdown, page, **_):
    """Files of the repository that a page links to are no part of the site: their names stay."""

    def name(link):
        text, target = link.groups()
        path = (ROOT / "docs" / page.file.src_uri).parent / target.partition("#")[0]
        if not path.exists():
            raise FileNotFoundError(f"docs/{page.file.src_uri} links to {target}: no such file")
        return f"`{text}`" if "`" not in text else text

    return re.sub(r"(?<!!)\[([^\]]+)\]\((\.\./[^)]+)\)", name, markdown)


class PlainRoles(griffe.Extension):
    """Sphinx's :func:`name` becomes `name`."""

    def on_instance(self, *, obj, **_):
        if obj.docstring:
            role = r":(?:func|class|meth|mod|attr):`~?([^`]+)`"
            obj.docstring.value = re.sub(role, r"`\1`", obj.docstring.value)
