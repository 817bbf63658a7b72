"""Which faces are found in a form's photographs, and which of them is meant."""

from typing import Any

from persongen_jax.demo.photographs import find_faces, with_boxes
from persongen_jax.demo.sessions import sentence
from persongen_jax.demo.site import PRIVATE, Site
from persongen_jax.demo.tabs import form


def gallery() -> Any:
    """Where the faces are shown: inside the current block."""
    import gradio as gr

    return gr.Gallery(label="Faces", columns=4, height=190, object_fit="contain", visible=False)


def show_faces(site: Site, model: Any, people: dict[str, Any], shown: Any) -> None:
    """Finds the faces of photographs as they change, and offers a choice where there are several.

    Args:
        model: the component that chooses it, or them.
        people: of ``form.photographs``, of one person.
        shown: their ``gallery``.
    """
    import gradio as gr

    photographs = {name: each for name, each in people.items() if "photograph" in name}
    choices = {name: each for name, each in people.items() if name not in photographs}

    def look_at(visitor: gr.Request, chosen, **values):
        keep(site, visitor, values)
        try:
            return look(site, visitor, chosen, list(photographs), list(choices), values)
        except Exception as error:
            raise sentence(error) from error

    gr.on(
        [*(each.change for each in photographs.values()), *(e.input for e in choices.values())],
        look_at,
        inputs_kwargs={"chosen": model, **people},
        outputs=[shown, *choices.values()],
        show_progress="hidden",
        **PRIVATE,
    )


def keep(site: Site, visitor: Any, values: dict[str, Any]) -> None:
    """Remembers the files of a form's uploads as this visitor's."""
    for upload in form.uploads(values):
        site.sessions.keep(visitor, upload.path)


def look(
    site: Site,
    visitor: Any,
    chosen: str | list[str],
    photographs: list[str],
    choices: list[str],
    values: dict[str, Any],
) -> list:
    """Values of the gallery and of the choices."""
    import gradio as gr

    names = [chosen] if isinstance(chosen, str) else chosen or site.names
    detector = site.models.detector(site.models.named(names[0]))
    shown, set_to = [], []
    for number, (photograph, choice) in enumerate(zip(photographs, choices, strict=True), 1):
        upload, face = values[photograph], values[choice]
        faces = [] if upload is None else find_faces(upload.image, detector)
        known = [str(k) for k in range(1, len(faces) + 1)] or ["1"]
        face = face if face in known else "1"
        set_to.append(gr.update(choices=known, value=face, visible=len(faces) > 1))
        if upload is not None:
            said = "no face found" if not faces else f"photograph {number}"
            boxes = with_boxes(upload.image, faces, int(face) - 1)
            shown.append((site.lend(boxes, visitor), said))
    return [gr.update(value=shown or None, visible=bool(shown)), *set_to]
