"""Checks one layer's tensors of an adapter file by their shapes and reads them."""

import math
from dataclasses import dataclass
from typing import NoReturn

import numpy as np

from persongen_jax.weights.errors import UnsupportedAdapter, shorten
from persongen_jax.weights.files.source import TensorSource
from persongen_jax.weights.formats.lora.kinds import (
    Change,
    Difference,
    LoHa,
    LoKr,
    LoraWeights,
    fold_core,
)
from persongen_jax.weights.formats.lora.settings import PeftSettings

LARGEST = 1e30  # alpha; beyond it, float32 overflows
_LOHA = ("w1_a", "w1_b", "w2_a", "w2_b")


def _sound(source, key) -> np.ndarray:
    """The tensor; UnsupportedAdapter for one that cannot be used in a computation."""
    array = source.read(key)
    if "float" not in array.dtype.name and array.size > 1:
        raise UnsupportedAdapter(
            f"{source.describe()}: {key!r} is stored as {array.dtype.name}, not a weight: it "
            "is quantised in a way that is not read here. Get the file in fp16 or bf16."
        )
    if not np.isfinite(array.astype(np.float32)).all():
        raise UnsupportedAdapter(
            f"{source.describe()}: {key!r} holds values that are not finite: its training has "
            "failed. Use an earlier checkpoint of it."
        )
    return array


@dataclass(frozen=True)
class Layer:
    """Attributes: shape: of the layer's weight; roles: which tensor of the adapter -> its key."""

    component: str
    path: str
    shape: tuple
    roles: dict[str, str]


def read_layer(source: TensorSource, layer: Layer, settings: PeftSettings) -> LoraWeights | Change:
    """What the file holds for one layer.

    Args:
        settings: PeftSettings, which provide alpha if no tensor does.

    Raises:
        UnsupportedAdapter: tensors that are missing, or whose shapes do not match.
    """
    reader = _Reader(source, layer, settings)
    if "down" in layer.roles and "magnitude" not in layer.roles:
        if settings.uses_dora(layer.component):
            reader.fail("has no magnitude, though the settings say use_dora")
    kinds = {role.split()[0] for role in layer.roles} & {"down", "up", "mid", "loha", "lokr"}
    if len(kinds - {"down", "up", "mid"}) + bool(kinds & {"down", "up", "mid"}) > 1:
        reader.fail(f"has tensors of several kinds ({shorten(layer.roles.values())})")
    if layer.roles.keys() <= {"down", "up", "mid", "alpha"}:
        return reader.lora()
    products: list[LoraWeights | LoHa | LoKr | Difference] = []
    if "loha" in kinds:
        products.append(reader.loha())
    elif "lokr" in kinds:
        products.append(reader.lokr())
    elif kinds or not layer.roles.keys() & {"diff", "diff_b", "ia3", "weight", "magnitude"}:
        products.append(reader.lora())
    if "diff" in layer.roles:
        products.append(Difference(reader.read("diff")))
    gain, gain_of_bias = reader.gain()
    return Change(tuple(products), reader.bias(products), reader.magnitude(), gain, gain_of_bias)


class _Reader:
    """Reads one layer's tensors by their roles."""

    def __init__(self, source, layer, settings):
        self.source, self.layer, self.settings = source, layer, settings
        self.where = f"{source.describe()}: {layer.component}.{layer.path}"

    def fail(self, what) -> NoReturn:
        raise UnsupportedAdapter(f"{self.where} {what}. Fetch the file again.")

    def fail_factors(self, kind) -> NoReturn:
        listed = ", ".join(f"{role} {self.shape(role)}" for role in self.layer.roles)
        self.fail(f"has {kind} factors that do not go together ({listed})")

    def shape(self, role) -> tuple[int, ...]:
        return tuple(int(n) for n in self.source.info(self.layer.roles[role])[1])

    def read(self, role) -> np.ndarray:
        return _sound(self.source, self.layer.roles[role])

    # ---- the kinds ----

    def lora(self) -> LoraWeights:
        for role in ("down", "up"):
            if role not in self.layer.roles:
                there = shorten(self.layer.roles.values())
                self.fail(f"has no {role} half beside {there}")
        down, up = self.shape("down"), self.shape("up")
        mid = self.shape("mid") if "mid" in self.layer.roles else None
        sound = len(down) in (2, 4) and len(up) in (2, 4) and set(up[2:]) <= {1}
        if sound and mid is not None:
            sound = len(mid) == 4 and mid[:2] == (up[1], down[0]) and set(down[2:]) <= {1}
        if not sound or (down[0] != up[1] and mid is None) or 0 in down or 0 in up:
            self.fail(
                f"has down {down} and up {up}, which do not share a rank; expected are "
                "[rank, in(, kh, kw)] and [out, rank(, 1, 1)]"
            )
        half = self.read("down")
        if mid is not None:
            half = fold_core(half, self.read("mid"))
        return LoraWeights(half, self.read("up"), self.alpha(down[0]))

    def loha(self) -> LoHa:
        parts = [f"loha {role}" for role in _LOHA]
        cores = [role for role in ("loha t1", "loha t2") if role in self.layer.roles]
        if len(cores) == 1 or not self.layer.roles.keys() >= set(parts):
            self.fail_factors("LoHa")
        a1, b1, a2, b2 = map(self.shape, parts)
        sound = all(len(shape) == 2 and 0 not in shape for shape in (a1, b1, a2, b2))
        if sound and not cores:
            sound = a1[1] == b1[0] and a2[1] == b2[0] and (a1[0], b1[1]) == (a2[0], b2[1])
        elif sound:
            t1, t2 = map(self.shape, cores)
            sound = len(t1) == len(t2) == 4 and t1[2:] == t2[2:]
            sound = sound and t1[:2] == (a1[0], b1[0]) and t2[:2] == (a2[0], b2[0])
            sound = sound and (a1[1], b1[1]) == (a2[1], b2[1])
        if not sound:
            self.fail_factors("LoHa")
        arrays = {role.removeprefix("loha "): self.read(role) for role in parts + cores}
        return LoHa(**arrays, scale=self.scale(b1[0]))

    def lokr(self) -> LoKr:
        first, rank_1 = self._factor("w1")
        second, rank_2 = self._factor("w2")
        rank = rank_2 or rank_1
        if rank is None:
            # Whole factors have no rank in the file: then LyCORIS' scale is 1, PEFT's alpha / r.
            rank = self.settings.rank(self.layer.component, self.layer.path)
            alpha = self.settings.alpha(self.layer.component, self.layer.path, rank or 1)
            scale = 1.0 if rank is None or alpha is None else alpha / rank
        else:
            scale = self.scale(rank)
        return LoKr(first, second, scale)

    def _factor(self, name) -> tuple[tuple, int | None]:
        """(the arrays of kinds.LoKr, rank)."""
        roles = self.layer.roles
        whole, *parts = (f"lokr {name}{part}" for part in ("", "_a", "_b"))
        core = ["lokr t2"] if name == "w2" and "lokr t2" in roles else []
        if whole in roles and not roles.keys() & {*parts, *core}:
            shape = self.shape(whole)
            if len(shape) < 2 or 0 in shape:
                self.fail_factors("LoKr")
            return (self.read(whole),), None
        if whole in roles or "lokr t1" in roles or not roles.keys() >= set(parts):
            self.fail_factors("LoKr")
        a, b = map(self.shape, parts)
        sound = len(a) == 2 and len(b) >= 2 and 0 not in (*a, *b)
        if sound and not core:
            sound = a[1] == b[0]
        elif sound:
            middle = self.shape(core[0])
            sound = len(middle) == 4 and len(b) == 2 and middle[:2] == (a[0], b[0])
        if not sound:
            self.fail_factors("LoKr")
        return tuple(self.read(role) for role in parts + core), b[0]

    def magnitude(self) -> np.ndarray | None:
        return self._along("magnitude")

    def gain(self) -> tuple[np.ndarray | None, bool]:
        """(IA3's factors minus 1 along the axis that they scale, whether they scale the bias)."""
        if "ia3" in self.layer.roles:
            array = self.read("ia3")
            on_input = self._scales_input(array)
            return self._vector(array, on_input) - 1, not on_input
        if "weight" not in self.layer.roles:
            return None, False
        on_input = self._number("on_input") != 0
        return self._vector(self.read("weight"), on_input), False

    def _scales_input(self, array) -> bool:
        """PEFT stores a linear layer's factors as [1, in] or [out, 1], a convolution's flat."""
        out, inner = self.layer.shape[:2]
        if len(self.layer.shape) == 2 and array.ndim == 2 and 1 in array.shape and out * inner > 1:
            return array.shape[0] == 1 and array.shape[1] == inner and inner > 1
        if out != inner:
            return array.size == inner
        return self.settings.scales_input(self.layer.path)

    def bias(self, products) -> np.ndarray | None:
        if "bias" in self.layer.roles:  # PEFT's lora_bias: part of the up half
            if "diff_b" in self.layer.roles or not products:
                self.fail(f"has tensors of several kinds ({shorten(self.layer.roles.values())})")
            array = self.read("bias").astype(np.float32) * np.float32(products[0].scale)
        elif "diff_b" in self.layer.roles:
            array = self.read("diff_b")
        else:
            return None
        if array.size != self.layer.shape[0]:
            self.fail(f"has {array.size} numbers for the bias of {self.layer.shape[0]} outputs")
        return array

    # ---- numbers and vectors ----

    def alpha(self, rank) -> float | None:
        if "alpha" in self.layer.roles:
            return self._number("alpha")
        return self.settings.alpha(self.layer.component, self.layer.path, rank)

    def scale(self, rank) -> float:
        alpha = self.alpha(rank)
        return 1.0 if alpha is None else alpha / rank

    def _number(self, role) -> float:
        array = self.source.read(self.layer.roles[role])
        value = float(array.reshape(-1)[0]) if array.size == 1 else math.nan
        if not math.isfinite(value) or abs(value) > LARGEST:
            raise UnsupportedAdapter(
                f"{self.source.describe()}: {self.layer.roles[role]!r} must be one finite number, "
                f"and is {array.size} values ({value}). Fetch the file again."
            )
        return value

    def _along(self, role) -> np.ndarray | None:
        """One number per output, or per input if its shape says so."""
        if role not in self.layer.roles:
            return None
        array = self.read(role)
        shape = array.shape
        of_inputs = len(shape) > 1 and shape[0] == 1 and self.layer.shape[0] != 1
        # PEFT stores a convolution's as [1, out, 1, 1]; LyCORIS' input scales are [1, in, 1, 1].
        if of_inputs and len(shape) == 4 and self._is_peft(role):
            return self._vector(array, on_input=False)
        return self._vector(array, on_input=of_inputs)

    def _is_peft(self, role) -> bool:
        return "lora_magnitude_vector" in self.layer.roles[role]

    def _vector(self, array, on_input) -> np.ndarray:
        wanted = self.layer.shape[1 if on_input else 0]
        if array.size != wanted:
            self.fail(f"has {array.size} factors for {wanted} {'in' if on_input else 'out'}puts")
        return array.reshape(1, -1) if on_input else array.reshape(-1)


__all__ = ["Layer", "read_layer"]
