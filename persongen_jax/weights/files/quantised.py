"""Weights that are stored in fewer bits together with scales: read as weight x scale.

Supports both layouts of scaled fp8. The older one: ``<layer>.scale_weight`` (and ``.scale_input``
for activations, which is not needed), with a marker tensor ``scaled_fp8``. The newer one:
``<layer>.weight_scale`` (and ``.input_scale``), marked by ``<layer>.comfy_quant``, JSON text in
bytes, or by ``_quantization_metadata`` in the file's metadata. A scale is one number, or one per
row of the weight. Other quantisations are refused by name.
"""

import json
import re
from collections.abc import Iterable

import numpy as np

from persongen_jax.weights.errors import WeightsError, shorten
from persongen_jax.weights.files.source import TensorSource

NOTES = "_quantization_metadata"
_SCALES = (".scale_weight", ".weight_scale")
_UNUSED = (".scale_input", ".input_scale", ".comfy_quant")
FORMATS = ("float8_e4m3fn", "float8_e5m2")

# A key that only one kind of quantisation has, and the name of that kind.
_OTHERS = (
    (
        re.compile(r".*\.quant_state\.bitsandbytes__|.*\.weight\.(absmax|quant_map)$"),
        "bitsandbytes",
    ),
    (re.compile(r".*\.weight_scale_2$"), "NVFP4"),
    (re.compile(r".*\.(qweight|wscales|qzeros)$"), "4-bit (SVDQuant, GPTQ or AWQ)"),
    (re.compile(r".*\.weight\._(data|scale)$"), "quanto's"),
    (re.compile(r".*\.(SCB|weight_format)$"), "bitsandbytes' int8"),
    (re.compile(r".*\.weight_scale_inv$"), "fp8 with scales of blocks"),
    (re.compile(r".*\.(weight_packed|g_idx|scales|qscales)$"), "4-bit (GPTQ or AWQ)"),
    (
        re.compile(r".*\.(svd_up|svd_down|zero_point|weight_zero_point)$"),
        "SDNQ's or another integer",
    ),
)


class Dequantised(TensorSource):
    """A source that returns scaled weights as float32 products; it hides the scales.

    Args:
        base: the underlying source; :func:`find_scales` found its scales.
        scales: weight's key -> its scale's key. hidden: other keys to leave out.
    """

    def __init__(self, base: TensorSource, scales: dict[str, str], hidden: set[str]):
        self._base, self._scales = base, scales
        self._hidden = hidden | set(scales.values())
        self.metadata, self.ignored = base.metadata, base.ignored

    def keys(self) -> list[str]:
        return [key for key in self._base.keys() if key not in self._hidden]

    def info(self, key: str) -> tuple[np.dtype, tuple[int, ...]]:
        dtype, shape = self._base.info(key)
        return (np.dtype(np.float32) if key in self._scales else dtype), shape

    def read(self, key: str) -> np.ndarray:
        array = self._base.read(key)
        if key not in self._scales:
            return array
        scale = self._base.read(self._scales[key]).astype(np.float32).reshape(-1)
        if scale.size > 1:
            scale = scale.reshape(-1, *[1] * (array.ndim - 1))
        return (array.astype(np.float32) * scale).reshape(array.shape)

    def describe(self) -> str:
        return self._base.describe()

    def close(self) -> None:
        self._base.close()


def dequantised(source: TensorSource) -> TensorSource:
    """``source`` with its scaled weights multiplied by their scales; itself if there are none.

    Raises:
        WeightsError: another quantisation, with its name; scales that fit no weight.
    """
    keys = set(source.keys())
    for key in source.keys():
        for sign, name in _OTHERS:
            if sign.match(key):
                raise WeightsError(
                    f"{source.describe()}: {name} quantisation ({key!r}), which is not read here. "
                    "Get the file in fp16, bf16 or scaled fp8."
                )
    _check_formats(source, keys)
    scales, hidden = {}, {key for key in keys if key.endswith(_UNUSED) or _is_marker(key)}
    for key in source.keys():
        ending = next((e for e in _SCALES if key.endswith(e)), None)
        if ending:
            scales[_weight_of(source, keys, key, ending)] = key
    return Dequantised(source, scales, hidden) if scales or hidden else source


def _is_marker(key: str) -> bool:
    return key == "scaled_fp8" or key.endswith(".scaled_fp8")


def _weight_of(source, keys, key, ending) -> str:
    weight = key.removesuffix(ending) + ".weight"
    if weight not in keys:
        raise WeightsError(
            f"{source.describe()}: the scale {key!r} has no weight {weight!r}. The file is "
            "damaged, or of a layout that is not read here; get another."
        )
    shape, scale = source.info(weight)[1], source.info(key)[1]
    one, rows = int(np.prod(scale)) == 1, bool(shape) and tuple(scale[:1]) == tuple(shape[:1])
    if not one and not (rows and all(n == 1 for n in scale[1:])):
        raise WeightsError(
            f"{source.describe()}: the scale {key!r} of shape {tuple(scale)} is neither one number "
            f"nor one per row of {weight!r} {tuple(shape)}: a scale per block is not read here. "
            "Get the file in fp16, bf16 or scaled fp8."
        )
    return weight


def _check_formats(source, keys):
    """WeightsError for a layer that declares anything but fp8."""
    formats = {}
    for key in keys:
        if key.endswith(".comfy_quant"):
            size = int(np.prod(source.info(key)[1], dtype=np.int64))
            text = source.read(key).tobytes() if size <= 10_000 else b""
            formats[key.removesuffix(".comfy_quant")] = _json(source, key, text)
    if NOTES in source.metadata:
        layers = _json(source, NOTES, source.metadata[NOTES]).get("layers")
        formats |= layers if isinstance(layers, dict) else {}
    for layer, said in formats.items():
        name = said.get("format") if isinstance(said, dict) else said
        if name not in FORMATS:
            raise WeightsError(
                f"{source.describe()}: {layer!r} is quantised as {name!r}, which is not read here "
                f"({', '.join(FORMATS)} are). Get the file in fp16, bf16 or scaled fp8."
            )


def _json(source, key, text) -> dict:
    try:
        content = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise WeightsError(
            f"{source.describe()}: {key!r} is not JSON ({error}). Fetch the file again."
        ) from error
    return content if isinstance(content, dict) else {}


def precision(source: TensorSource, keys: Iterable[str] | None = None) -> str:
    """How the weights are stored: "float16"; "float8_e4m3fn, scaled (scale_weight)"."""
    keys = list(source.keys() if keys is None else keys)
    numbers, scaled = {}, set()
    for key in keys:
        ending = next((e for e in _SCALES if key.endswith(e)), None)
        if ending:
            scaled.add(ending[1:])
        elif not key.endswith(_UNUSED) and not _is_marker(key):
            dtype, shape = source.info(key)
            size = int(np.prod(shape, dtype=np.float64)) if shape else 1
            numbers[dtype.name] = numbers.get(dtype.name, 0) + size
    some = sum(numbers.values()) / 100  # counters are not weights
    kept = (n for n in numbers if "float" in n or numbers[n] > some)
    names = sorted(kept, key=lambda n: (-numbers[n], n))
    said = " and ".join(names) or shorten(sorted(numbers)) or "nothing"
    return f"{said}, scaled ({', '.join(sorted(scaled))})" if scaled else said


__all__ = ["Dequantised", "FORMATS", "dequantised", "precision"]
