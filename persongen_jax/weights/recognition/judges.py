"""The judging networks' files: their keys under our names, and the networks' sizes."""

import re

from persongen_jax.models.judges.facenet import DIM, SIZE
from persongen_jax.models.judges.inception import FEATURES
from persongen_jax.models.judges.lpips import LAYERS
from persongen_jax.models.judges.units import narrowed
from persongen_jax.weights.errors import BadConfig, KeyMismatch, WeightsError
from persongen_jax.weights.files.source import (
    RenamedSource,
    Renaming,
    TensorSource,
    Transform,
)

JUDGES = ("inception", "facenet", "lpips", "lpips-heads", "lpips-backbone")
INCEPTION_FILE = "pt_inception-2015-12-05-6726825d.pth"
FACENET_FILE = "20180402-114759-vggface2.pt"
LPIPS_FILES = "alexnet-owt-7be5be79.pth with lpips' alex.pth, or vgg16-397923af.pth with vgg.pth"
HEAD_WIDTHS = {"alex": (64, 192, 384, 256, 256), "vgg": (64, 128, 256, 512, 512)}
COUNTER = ".num_batches_tracked"  # PyTorch's, next to running statistics; unused here

# (1, c, 1, 1) or (c,) -> (c,): LPIPS' heads are convolutions to one channel.
CHANNELS = Transform(
    lambda shape: shape[1:2] if len(shape) == 4 and shape[0] == 1 else shape,
    lambda array: array[0, :, 0, 0].copy() if array.ndim == 4 and len(array) == 1 else array,
)
_HEAD = re.compile(r"lin(\d+)\.model\.\d+\.weight")
_CONV = re.compile(r"(?:features|net\.slice\d)\.(\d+)\.(weight|bias)")
# What the lpips package's own state holds twice or knows, and torchvision's classifiers.
_UNUSED = re.compile(r"lins\.\d+\.|scaling_layer\.(shift|scale)$|classifier\.\d+\.")


# ---- FID's Inception, FaceNet ------------------------------------------------------------------


def name_inception_tensors(source: TensorSource) -> RenamedSource:
    """The tensors of pytorch-fid's file under the same names, without counters.

    Raises:
        WeightsError: torchvision's own Inception-v3, which is another network.
    """
    keys = source.keys()
    classes = source.info("fc.weight")[1][:1] if "fc.weight" in keys else ()
    if any(key.startswith("AuxLogits.") for key in keys) or classes == (1000,):
        raise WeightsError(
            f"{source.describe()}: is torchvision's Inception-v3 for 1000 classes, whose features "
            f"are not FID's. Take pytorch-fid's {INCEPTION_FILE}."
        )
    return _without_counters(source)


def name_facenet_tensors(source: TensorSource) -> RenamedSource:
    """The tensors of facenet-pytorch's file under the same names, without counters and classes."""
    return _without_counters(source, ("logits.",))


def _without_counters(source, ignored: tuple[str, ...] = ()) -> RenamedSource:
    renaming = Renaming(source)
    for key in source.keys():
        if key.endswith(COUNTER) or key.startswith(ignored or ("\0",)):
            renaming.ignore(key)
        else:
            renaming.add(key, key)
    return renaming.source()


def infer_inception_config(source: TensorSource) -> dict:
    """``width`` and ``classes`` of :func:`name_inception_tensors`' tensors.

    Raises:
        KeyMismatch: the keys are not such a network's.
        BadConfig: an odd width.
    """
    remedy = f"It is not FID's Inception: take pytorch-fid's {INCEPTION_FILE}."
    width = _even_width(source, "Conv2d_1a_3x3.conv.weight", remedy)
    return {"width": width, "classes": _shape(source, "fc.weight", 2, remedy)[0]}


def infer_facenet_config(source: TensorSource) -> dict:
    """``width`` of :func:`name_facenet_tensors`' tensors; raises as for Inception."""
    remedy = f"It is not FaceNet: take facenet-pytorch's {FACENET_FILE}."
    return {"width": _even_width(source, "conv2d_1a.conv.weight", remedy)}


def _even_width(source, key, remedy) -> int:
    width = int(_shape(source, key, 4, remedy)[0])
    if width % 2:
        raise BadConfig(
            f"{source.describe()}: {width} channels after {key}, an odd number. {remedy}"
        )
    return width


# ---- LPIPS -------------------------------------------------------------------------------------


def name_lpips_tensors(source: TensorSource) -> RenamedSource:
    """Backbones and heads under our names: ``backbone.convs.{i}``, ``heads.{i}``.

    A backbone's keys are torchvision's ``features.{n}`` or the lpips package's
    ``net.slice{s}.{n}``; heads' are ``lin{i}.model.1.weight``. Keys of neither are passed on.

    Raises:
        WeightsError: SqueezeNet's, which is not read.
    """
    keys = source.keys()
    if any(re.match(r"(features|net\.slice\d)\.\d+\.squeeze\.", key) for key in keys):
        raise WeightsError(
            f"{source.describe()}: is LPIPS on SqueezeNet, which is not read here. Take "
            f"{LPIPS_FILES}."
        )
    net = lpips_net(source)
    places = {layer[0]: place for place, layer in enumerate(LAYERS[net])} if net else {}
    renaming = Renaming(source)
    for key in keys:
        if _UNUSED.match(key):
            renaming.ignore(key)
        elif match := _HEAD.fullmatch(key):
            renaming.add(f"heads.{match[1]}", key, CHANNELS)
        elif (match := _CONV.fullmatch(key)) and int(match[1]) in places:
            renaming.add(f"backbone.convs.{places[int(match[1])]}.{match[2]}", key)
        else:
            renaming.add(key, key)
    return renaming.source()


def lpips_net(source: TensorSource) -> str:
    """Which backbone a file has, by the side of its first kernel: "alex", "vgg", or "" for none."""
    for key in ("features.0.weight", "net.slice1.0.weight"):
        if key in source.keys() and len(shape := source.info(key)[1]) == 4:
            return {11: "alex", 3: "vgg"}.get(shape[2], "")
    return ""


def lpips_heads_net(source: TensorSource) -> str:
    """Whose heads a file of heads has, by their channels: "alex", "vgg", or "" if neither's."""
    widths = tuple(
        int(source.info(key)[1][1])
        for key in sorted(source.keys())
        if _HEAD.fullmatch(key) and len(source.info(key)[1]) == 4
    )
    return next((net for net, known in HEAD_WIDTHS.items() if known == widths), "")


def infer_backbone_config(source: TensorSource, net: str) -> dict:
    """``net`` and ``widths`` of :func:`name_lpips_tensors`' tensors.

    Raises:
        KeyMismatch: a convolution is missing, or no backbone is there.
    """
    remedy = f"It has no backbone of LPIPS: take {LPIPS_FILES}."
    if not net:
        raise KeyMismatch(source.describe(), missing=["features.0.weight"], remedy=remedy)
    keys = (f"backbone.convs.{place}.weight" for place in range(len(LAYERS[net])))
    return {"net": net, "widths": tuple(int(_shape(source, k, 4, remedy)[0]) for k in keys)}


# ---- what inspect says -------------------------------------------------------------------------


def judge_facts(kind: str, source: TensorSource) -> dict:
    """What tells variants of a kind of JUDGES apart, by name."""
    try:
        if kind == "inception":
            config = infer_inception_config(name_inception_tensors(source))
            features = narrowed(FEATURES, config["width"])
            return {"features": features, "classes": config["classes"]}
        if kind == "facenet":
            config = infer_facenet_config(name_facenet_tensors(source))
            return {"embedding dim": narrowed(DIM, config["width"]), "input size": SIZE}
        if kind == "lpips-heads":
            return {"net": lpips_heads_net(source) or "unknown"}
        config = infer_backbone_config(name_lpips_tensors(source), lpips_net(source))
        return {"net": config["net"]}
    except WeightsError as error:
        return {"not read": str(error).splitlines()[0]}


def _shape(source, key, dims, remedy) -> tuple:
    found = tuple(source.info(key)[1]) if key in source.keys() else ()
    if len(found) != dims or 0 in found:
        raise KeyMismatch(source.describe(), missing=[key], remedy=remedy)
    return found


__all__ = [
    "FACENET_FILE",
    "INCEPTION_FILE",
    "JUDGES",
    "LPIPS_FILES",
    "infer_backbone_config",
    "infer_facenet_config",
    "infer_inception_config",
    "judge_facts",
    "lpips_heads_net",
    "lpips_net",
    "name_facenet_tensors",
    "name_inception_tensors",
    "name_lpips_tensors",
]
