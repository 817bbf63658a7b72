"""Tiny generated images in folders."""

from pathlib import Path

from PIL import Image, PngImagePlugin


def draw(path: Path, grey: int = 100, notes: dict | None = None, size=(8, 8)) -> Path:
    """A PNG of one grey, with text chunks."""
    path.parent.mkdir(parents=True, exist_ok=True)
    info = PngImagePlugin.PngInfo()
    for key, text in (notes or {}).items():
        info.add_text(key, text)
    Image.new("RGB", size, (grey,) * 3).save(path, pnginfo=info)
    return path
