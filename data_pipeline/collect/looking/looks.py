"""What is measured of a picture, whatever the thresholds: it is stored and never measured again."""

from dataclasses import asdict, dataclass, field
from typing import Any


@dataclass(frozen=True)
class Face:
    """A face. Positions are pixels of the picture, origin "corner" (data_pipeline/faces/align.py).

    sharpness: variance of the Laplacian, of the face at no more than 256 pixels.
    dark, bright: share of its pixels that are almost black, almost white.
    """

    box: tuple[float, float, float, float]
    landmarks: tuple[tuple[float, float], ...]
    score: float
    sharpness: float
    dark: float
    bright: float


@dataclass(frozen=True)
class Look:
    """A picture.

    size: (height, width). phash: 64 bits in hexadecimal digits. colour: mean difference of a
    pixel's largest and smallest channel, 0 to 255. faces: the highest score first. keypoints [12],
    visibility [12]: as in data_pipeline.records.schema. scores: of plug-ins. fault: why it could
    not be looked at; then nothing else is known.
    """

    key: str
    size: tuple[int, int] = (0, 0)
    phash: str = "0" * 16
    colour: float = 0.0
    faces: tuple[Face, ...] = ()
    keypoints: tuple[tuple[float, float], ...] | None = None
    visibility: tuple[bool, ...] | None = None
    scores: dict[str, float] = field(default_factory=dict)
    fault: str = ""

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_json(cls, entry: dict[str, Any]) -> "Look":
        plain = {name: _tuples(value) for name, value in entry.items()}
        plain["faces"] = tuple(
            Face(**{name: _tuples(value) for name, value in face.items()})
            for face in entry["faces"]
        )
        return cls(**plain)


def _tuples(value):
    return tuple(map(_tuples, value)) if isinstance(value, list | tuple) else value
