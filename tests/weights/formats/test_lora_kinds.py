"""DoRA, LoHa, LoKr, IA3, full differences: against their formulas in float64, and peft."""

import json
import re

import numpy as np
import pytest

from persongen_jax.weights.errors import UnsupportedAdapter
from persongen_jax.weights.files.source import DictSource
from persongen_jax.weights.formats.lora.kinds import Change, LoraWeights
from persongen_jax.weights.formats.lora.reading import no_effect, read_lora
from tests.helpers.lora_files import save

LINEAR, CONV = "down_blocks.1.attentions.0.proj_in", "down_blocks.0.resnets.0.conv1"
SHAPES = {LINEAR: (12, 8), CONV: (6, 4, 3, 3)}
MODULES = {"unet": SHAPES}
RANK, ALPHA = 2, 3.0
EXACT = 1e-5


def draw(*shape, seed=0):
    rng = np.random.default_rng((seed, *shape))
    return rng.standard_normal(shape).astype(np.float32)


def wide(tensors):
    return {name: array.astype(np.float64) for name, array in tensors.items()}


def flat(array):
    return array.reshape(len(array), -1)


def norm(weight, axes):
    return np.sqrt((weight**2).sum(axis=axes, keepdims=True))


# ---- The formulas, written independently ---------------------------------------------------------


def lora(shape):
    rest = shape[2:]
    tensors = {
        "lora_down.weight": draw(RANK, shape[1], *rest),
        "lora_up.weight": draw(shape[0], RANK, *(1 for _ in rest)),
        "alpha": np.float32(ALPHA),
    }

    def formula(t, w, b):
        product = flat(t["lora_up.weight"]) @ flat(t["lora_down.weight"])
        return w + ALPHA / RANK * product.reshape(shape), b

    return tensors, formula


def with_core(shape):
    tensors, _ = lora((*shape[:2], 1, 1))
    tensors["lora_mid.weight"] = draw(RANK, RANK, *shape[2:])

    def formula(t, w, b):
        up, down = flat(t["lora_up.weight"]), flat(t["lora_down.weight"])
        full = np.zeros(shape)
        for i in range(RANK):
            for j in range(RANK):
                core = t["lora_mid.weight"][i, j]
                full += np.multiply.outer(np.outer(up[:, i], down[j]), core)
        return w + ALPHA / RANK * full, b

    return tensors, formula


def loha(shape):
    inner = int(np.prod(shape[1:]))
    tensors = {
        f"hada_{name}": draw(*size, seed=seed)
        for seed, (name, size) in enumerate(
            {
                "w1_a": (shape[0], RANK),
                "w1_b": (RANK, inner),
                "w2_a": (shape[0], RANK),
                "w2_b": (RANK, inner),
            }.items()
        )
    }
    tensors["alpha"] = np.float32(ALPHA)

    def formula(t, w, b):
        first, second = t["hada_w1_a"] @ t["hada_w1_b"], t["hada_w2_a"] @ t["hada_w2_b"]
        return w + ALPHA / RANK * (first * second).reshape(shape), b

    return tensors, formula


def tucker(core, a, b):
    """sum_ij core[i, j] x a[i] x b[j], spelled out."""
    out = np.zeros((a.shape[1], b.shape[1], *core.shape[2:]))
    for i in range(core.shape[0]):
        for j in range(core.shape[1]):
            out += np.multiply.outer(np.outer(a[i], b[j]), core[i, j])
    return out


def loha_with_cores(shape):
    tensors = {"alpha": np.float32(ALPHA)}
    for k in "12":
        tensors[f"hada_w{k}_a"] = draw(RANK, shape[0], seed=int(k))
        tensors[f"hada_w{k}_b"] = draw(RANK, shape[1], seed=int(k))
        tensors[f"hada_t{k}"] = draw(RANK, RANK, *shape[2:], seed=int(k))

    def formula(t, w, b):
        parts = [tucker(t[f"hada_t{k}"], t[f"hada_w{k}_a"], t[f"hada_w{k}_b"]) for k in "12"]
        return w + ALPHA / RANK * parts[0] * parts[1], b

    return tensors, formula


def lokr(shape, first="whole", second="whole"):
    """Of (out, in) = (2 k, 2 n) with factors [2, 2] and [k, n, kh, kw]."""
    k, n, rest = shape[0] // 2, shape[1] // 2, shape[2:]
    tensors = {"alpha": np.float32(ALPHA)}
    if first == "whole":
        tensors["lokr_w1"] = draw(2, 2)
    else:
        tensors |= {"lokr_w1_a": draw(2, RANK), "lokr_w1_b": draw(RANK, 2)}
    if second == "whole":
        tensors["lokr_w2"] = draw(k, n, *rest)
    elif second == "core":
        tensors |= {"lokr_w2_a": draw(RANK, k), "lokr_w2_b": draw(RANK, n)}
        tensors["lokr_t2"] = draw(RANK, RANK, *rest)
    else:
        inner = n * int(np.prod(rest))
        tensors |= {"lokr_w2_a": draw(k, RANK), "lokr_w2_b": draw(RANK, inner)}
    scale = 1.0 if first == second == "whole" else ALPHA / RANK

    def formula(t, w, b):
        w1 = t["lokr_w1"] if first == "whole" else t["lokr_w1_a"] @ t["lokr_w1_b"]
        if second == "whole":
            w2 = t["lokr_w2"]
        elif second == "core":
            w2 = tucker(t["lokr_t2"], t["lokr_w2_a"], t["lokr_w2_b"])
        else:
            w2 = (t["lokr_w2_a"] @ t["lokr_w2_b"]).reshape(k, n, *rest)
        full = np.zeros(shape)
        for i in range(2):
            for j in range(2):
                full[i * k : (i + 1) * k, j * n : (j + 1) * n] = w1[i, j] * w2
        return w + scale * full, b

    return tensors, formula


def difference(shape, bias=True):
    tensors = {"diff": draw(*shape)} | ({"diff_b": draw(shape[0])} if bias else {})
    return tensors, lambda t, w, b: (w + t["diff"], b + t["diff_b"] if bias else b)


def lora_and_bias(shape):
    tensors, inner = lora(shape)
    tensors["diff_b"] = draw(shape[0])
    return tensors, lambda t, w, b: (inner(t, w, b)[0], b + t["diff_b"])


def lora_with_bias(shape):
    tensors, inner = lora(shape)
    tensors["lora_up.bias"] = draw(shape[0])
    scale = ALPHA / RANK
    return tensors, lambda t, w, b: (inner(t, w, b)[0], b + scale * t["lora_up.bias"])


def dora(shape, inner=lora, of="outputs", key="dora_scale"):
    tensors, plain = inner(shape)
    dims = [1] * len(shape)
    axis = 0 if of == "outputs" else 1
    dims[axis] = shape[axis]
    tensors[key] = np.abs(draw(*dims)) + 0.5
    if key != "dora_scale" and len(shape) == 2:
        tensors[key] = tensors[key].reshape(-1)

    def formula(t, w, b):
        whole = plain(t, w, b)[0]
        axes = tuple(i for i in range(len(shape)) if i != axis)
        return t[key].reshape(dims) * whole / norm(whole, axes), b

    return tensors, formula


def dora_of_peft(shape):
    tensors, formula = dora(shape, key="lora_magnitude_vector")
    if len(shape) == 4:  # peft has it as [1, out, 1, 1]
        tensors["lora_magnitude_vector"] = tensors["lora_magnitude_vector"].reshape(1, -1, 1, 1)
    return tensors, formula


def ia3(shape, on_input=False):
    size = shape[1 if on_input else 0]
    vector = draw(size) if len(shape) == 2 else draw(1, size, 1, 1)
    tensors = {"weight": vector, "on_input": np.array(int(on_input))}

    def formula(t, w, b):
        dims = [1] * len(shape)
        dims[1 if on_input else 0] = size
        return w * (1 + t["weight"].reshape(dims)), b

    return tensors, formula


CASES = {
    "LoRA": lora,
    "LoHa": loha,
    "LoKr, whole": lokr,
    "LoKr, second in two": lambda s: lokr(s, second="pair"),
    "LoKr, first in two": lambda s: lokr(s, first="pair"),
    "LoKr, both in two": lambda s: lokr(s, "pair", "pair"),
    "difference": difference,
    "difference of the weight alone": lambda s: difference(s, bias=False),
    "LoRA and a bias": lora_and_bias,
    "LoRA with a bias of its own": lora_with_bias,
    "DoRA": dora,
    "DoRA over inputs": lambda s: dora(s, of="inputs"),
    "DoRA of peft": dora_of_peft,
    "DoRA on LoHa": lambda s: dora(s, loha),
    "DoRA on LoKr, over inputs": lambda s: dora(s, lokr, of="inputs"),
    "IA3": ia3,
    "IA3 on inputs": lambda s: ia3(s, on_input=True),
}
CONVOLUTIONS = {
    "LoRA with a core": with_core,
    "LoHa with cores": loha_with_cores,
    "LoKr with a core": lambda s: lokr(s, second="core"),
    "LoKr with a core, first in two": lambda s: lokr(s, "pair", "core"),
}


def weights(path):
    return draw(*SHAPES[path], seed=9), draw(SHAPES[path][0], seed=9)


def read(path, tensors, **settings):
    stem = f"lora_unet_{path.replace('.', '_')}"
    source = DictSource({f"{stem}.{name}": array for name, array in tensors.items()}, "x")
    return read_lora(source, MODULES, **settings)["unet"][path]


def added(adapter, path):
    """(to the weight, to the bias)."""
    weight, bias = weights(path)
    if isinstance(adapter, LoraWeights):
        adapter = Change((adapter,))
    return adapter.of_layer(SHAPES[path], weight, bias)


def assert_exact(found, wanted):
    """Both as float64; the largest difference against the largest value."""
    assert np.abs(found - wanted).max() <= EXACT * np.abs(wanted).max()


@pytest.mark.parametrize(
    ("case", "path"),
    [*((case, path) for case in CASES for path in SHAPES), *((c, CONV) for c in CONVOLUTIONS)],
)
def test_the_published_formulas_in_float64(case, path):
    tensors, formula = {**CASES, **CONVOLUTIONS}[case](SHAPES[path])
    weight, bias = weights(path)
    wanted, wanted_bias = formula(wide(tensors), *map(np.float64, (weight, bias)))
    change, change_of_bias = added(read(path, tensors), path)
    assert np.abs(wanted - weight).max() > 0.1
    assert_exact(weight + np.float64(change), wanted)
    # Its own contribution; DoRA's is a difference of weights, and rounded like them.
    assert np.abs(change - (wanted - weight)).max() <= EXACT * np.abs(wanted).max()
    assert_exact(bias + np.float64(0 if change_of_bias is None else change_of_bias), wanted_bias)


def test_halves_are_worked_with_in_float32():
    tensors, formula = loha(SHAPES[LINEAR])
    halves = {name: array.astype(np.float16) for name, array in tensors.items()}
    weight, bias = weights(LINEAR)
    wanted, _ = formula(wide(halves), np.float64(weight), np.float64(bias))
    assert_exact(weight + np.float64(added(read(LINEAR, halves), LINEAR)[0]), wanted)


# ---- peft ---------------------------------------------------------------------------------------


PEFT = {
    "LOHA": ("LoHaConfig", {"alpha": 3}),
    "LOHA, cores": ("LoHaConfig", {"alpha": 3, "use_effective_conv2d": True}),
    "LOKR": ("LoKrConfig", {"alpha": 3}),
    "LOKR, cores": ("LoKrConfig", {"alpha": 3, "use_effective_conv2d": True}),
    "LOKR, in two": ("LoKrConfig", {"alpha": 3, "r": 1, "decompose_both": True}),
    "DoRA": ("LoraConfig", {"lora_alpha": 3, "use_dora": True}),
    "LoRA with a bias": ("LoraConfig", {"lora_alpha": 3, "lora_bias": True}),
    "rank-stabilised": ("LoraConfig", {"lora_alpha": 3, "use_rslora": True}),
    "IA3": ("IA3Config", {"feedforward_modules": ["conv"]}),
    "IA3, square": ("IA3Config", {"feedforward_modules": ["proj"]}),
    "IA3, square, an expression": ("IA3Config", {"feedforward_modules": ".*(proj|conv)"}),
}


@pytest.mark.parametrize("case", PEFT)
def test_peft_adds_the_same(case, tmp_path):
    """A folder saved by peft, against the weights that peft merges."""
    peft, torch = pytest.importorskip("peft"), pytest.importorskip("torch")
    torch.manual_seed(0)
    net = torch.nn.ModuleDict()
    out = (8, 4) if "square" in case else (12, 6)
    net["proj"], net["conv"] = torch.nn.Linear(8, out[0]), torch.nn.Conv2d(4, out[1], 3)
    before = {name: value.detach().numpy().copy() for name, value in net.state_dict().items()}
    name, options = PEFT[case]
    options = {"target_modules": ["proj", "conv"], **options}
    if name != "IA3Config":
        options = {"r": 2, **options}
    model = peft.get_peft_model(net, getattr(peft, name)(**options))
    for parameter in model.parameters():
        if parameter.requires_grad:
            with torch.no_grad():
                parameter.copy_(torch.rand_like(parameter) + 0.5)
    model.save_pretrained(str(tmp_path))
    config = json.loads((tmp_path / "adapter_config.json").read_text())
    assert config["peft_type"] in ("LORA", "LOHA", "LOKR", "IA3")
    merged = {k: v.detach().numpy() for k, v in model.merge_and_unload().state_dict().items()}

    shapes = {"proj": (out[0], 8), "conv": (out[1], 4, 3, 3)}
    found = read_lora(tmp_path, {"unet": shapes})["unet"]
    assert set(found) == set(shapes)
    for path, adapter in found.items():
        weight, bias = before[f"{path}.weight"], before[f"{path}.bias"]
        if isinstance(adapter, LoraWeights):
            adapter = Change((adapter,))
        change, of_bias = adapter.of_layer(shapes[path], weight, bias)
        assert np.abs(merged[f"{path}.weight"] - weight).max() > 0.05
        assert_exact(weight + change, merged[f"{path}.weight"])
        of_bias = 0 if of_bias is None else of_bias
        assert_exact(bias + of_bias, merged[f"{path}.bias"])


@pytest.mark.parametrize("on_input", [True, False])
def test_a_square_layers_ia3_says_by_its_shape_what_it_scales(on_input):
    """Even if there are no settings next to the file."""
    factors = np.arange(1, 9, dtype=np.float32).reshape((1, 8) if on_input else (8, 1))
    adapters = read_lora(DictSource({"proj.ia3_l": factors}, "x"), {"unet": {"proj": (8, 8)}})
    change, _ = adapters["unet"]["proj"].of_layer((8, 8), np.ones((8, 8), np.float32), None)
    np.testing.assert_array_equal(1 + change, np.broadcast_to(factors, (8, 8)))


# ---- What does not go together ------------------------------------------------------------------


def without(tensors, *names):
    return {name: array for name, array in tensors.items() if name not in names}


BROKEN = {
    "half a LoHa": (without(loha((12, 8))[0], "hada_w2_b"), "LoHa factors"),
    "LoHa of two sizes": (loha((12, 8))[0] | {"hada_w1_a": draw(11, RANK)}, "LoHa factors"),
    "LoHa with one core": (loha((12, 8))[0] | {"hada_t1": draw(2, 2, 1, 1)}, "LoHa factors"),
    "LoHa of a stack": (loha((12, 8))[0] | {"hada_w1_a": draw(12, 2, 1)}, "LoHa factors"),
    "half a LoKr": (without(lokr((12, 8))[0], "lokr_w2"), "LoKr factors"),
    "LoKr twice": (lokr((12, 8))[0] | {"lokr_w2_a": draw(6, 2)}, "LoKr factors"),
    "LoKr with a first core": (lokr((12, 8), "pair")[0] | {"lokr_t1": draw(2, 2)}, "LoKr factors"),
    "LoKr of ranks": (
        lokr((12, 8), second="pair")[0] | {"lokr_w2_a": draw(6, 3)},
        "LoKr factors",
    ),
    "several kinds": ({**lora((12, 8))[0], **loha((12, 8))[0]}, "several kinds"),
    "magnitudes of another layer": (dora((12, 8))[0] | {"dora_scale": draw(5, 1)}, "5 factors"),
    "IA3 of another layer": ({"weight": draw(5), "on_input": np.array(0)}, "5 factors"),
    "bias of another layer": (difference((12, 8))[0] | {"diff_b": draw(5)}, "5 numbers"),
    "a core of another rank": (
        with_core((12, 8, 3, 3))[0] | {"lora_mid.weight": draw(3, 3, 3, 3)},
        "share a rank",
    ),
    "only alpha": ({"alpha": np.float32(1)}, "no down half"),
    "nothing but a marker": ({"on_input": np.array(1)}, "no down half"),
}


@pytest.mark.parametrize("case", BROKEN)
def test_tensors_that_do_not_go_together(case):
    tensors, words = BROKEN[case]
    with pytest.raises(UnsupportedAdapter, match=f"x: unet.{re.escape(LINEAR)}.*{words}"):
        read(LINEAR, tensors)


def test_what_has_no_effect(tmp_path):
    for case, zero in (("LoRA", "lora_up.weight"), ("LoKr, whole", "lokr_w2")):
        tensors, _ = CASES[case](SHAPES[LINEAR])
        assert not no_effect({"unet": {LINEAR: read(LINEAR, tensors)}})
        tensors[zero] = np.zeros_like(tensors[zero])
        assert no_effect({"unet": {LINEAR: read(LINEAR, tensors)}})
    path = save(tmp_path / "a.safetensors", {f"unet.{LINEAR}.diff": draw(12, 8)})
    assert not no_effect(read_lora(path, MODULES))
