"""Opens the captioner that the settings name."""

from data_pipeline.collect.captions.base import Captioner
from data_pipeline.collect.captions.qwen import Qwen
from data_pipeline.collect.captions.server import Server
from data_pipeline.collect.looking.scores import import_named
from data_pipeline.collect.settings import Caption, SettingsError


def open_captioner(settings: Caption) -> Captioner | None:
    """The captioner that the settings name; None for the template, which needs no model.

    Raises:
        SettingsError, OSError, ImportError: there is none, or it cannot be opened; has the remedy.
    """
    kind, _, place = settings.captioner.partition(":")
    if settings.captioner == "template":
        return None
    if kind == "qwen":
        return Qwen(place, settings)
    if kind == "server":
        return Server(place, settings)
    if not place:
        raise SettingsError(
            f"caption.captioner={settings.captioner!r}: give template, qwen:DIR, server:URL or "
            "package.module:NAME"
        )
    found = import_named(settings.captioner)
    captioner = found(settings) if isinstance(found, type) else found
    if not isinstance(captioner, Captioner):
        raise SettingsError(
            f"caption.captioner={settings.captioner!r}: has no name, revision, prompt and ask()"
        )
    return captioner
