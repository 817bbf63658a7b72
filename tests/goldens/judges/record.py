"""Stores what the public tools give for the judging networks and their figures, in judges.npz.

They need torchvision, which does not load next to this project's PyTorch, and so an environment of
their own, in which this project need not be installed:

    python3.11 -m venv /tmp/tools
    /tmp/tools/bin/pip install torch==2.13.0 scipy pillow requests tqdm
    /tmp/tools/bin/pip install --no-deps torchvision==0.28.0 torch-fidelity==0.4.0 lpips==0.1.4 \
        facenet-pytorch==2.6.0 pytorch-fid==0.3.0 clean-fid==0.1.35
    /tmp/tools/bin/python -m tests.goldens.judges.record

torchvision's compiled operators are for a GPU's PyTorch; none of these networks uses one, so two
of them are only declared. Weights and pictures are seeded (tests/helpers/encoders/judge_files.py):
stored are the shapes of the tools' own state dicts, and what the tools give.
"""

import contextlib
import json

import numpy as np
import torch
from torch import nn

from tests.helpers.encoders.judge_files import FILE, clouds, patterns, seeded

OPERATORS = torch.library.Library("torchvision", "DEF")
for name in ("nms", "qnms"):
    OPERATORS.define(f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")

import cleanfid.fid  # noqa: E402
import cleanfid.resize  # noqa: E402
import facenet_pytorch.models.inception_resnet_v1 as facenet  # noqa: E402
import lpips  # noqa: E402
import pytorch_fid.fid_score  # noqa: E402
import pytorch_fid.inception  # noqa: E402
import torch_fidelity.feature_extractor_inceptionv3 as fidelity  # noqa: E402
from facenet_pytorch.models.utils.detect_face import extract_face  # noqa: E402
from PIL import Image  # noqa: E402
from torch_fidelity.interpolate_compat_tensorflow import (  # noqa: E402
    interpolate_bilinear_2d_like_tensorflow1x,
)
from torch_fidelity.metric_fid import (  # noqa: E402
    fid_features_to_statistics,
    fid_statistics_to_metric,
)
from torch_fidelity.metric_isc import isc_features_to_metric  # noqa: E402
from torch_fidelity.metric_kid import kid_features_to_metric  # noqa: E402

TAPS = ["64", "192", "768", "2048", "logits_unbiased"]
SIZES = ((37, 53), (401, 350))
FOUND: dict[str, np.ndarray] = {}


@contextlib.contextmanager
def narrow(by):
    """Networks made inside have ``by`` times fewer channels everywhere but in images."""
    names = ("Conv2d", "BatchNorm2d", "BatchNorm1d", "Linear")
    classes = {name: getattr(nn, name) for name in names}

    def fewer(n):
        # FID's classes stay 1008; nothing else has as many.
        return n if n in (1, 3, 1008) else n // by

    def narrower(name, cls):
        def make(self, *sizes, **options):
            many = 1 if name.startswith("Batch") else 2
            sizes = [fewer(n) if i < many else n for i, n in enumerate(sizes)]
            cls.__init__(self, *sizes, **options)

        return type(name, (cls,), {"__init__": make})

    for name, cls in classes.items():
        setattr(nn, name, narrower(name, cls))
    try:
        yield
    finally:
        for name, cls in classes.items():
            setattr(nn, name, cls)


def remember_shapes(name, net):
    shapes = {key: list(value.shape) for key, value in net.state_dict().items()}
    FOUND[f"shapes {name}"] = np.array(json.dumps(shapes))
    return shapes


def fill(name, net):
    """The network with seeded weights; its shapes are stored."""
    shapes = remember_shapes(name, net)
    net.load_state_dict({k: torch.from_numpy(v) for k, v in seeded(shapes).items()})
    return net.eval()


def nchw(images):
    return torch.from_numpy(images.transpose(0, 3, 1, 2).copy())


def keep(name, value):
    FOUND[name] = np.asarray(value.detach().numpy() if torch.is_tensor(value) else value)


# ---- Inception ---------------------------------------------------------------------------------


def fidelity_inception(width):
    """torch-fidelity's extractor, which reads a file of its own layout: one of seeded weights."""
    load, read = nn.Module.load_state_dict, torch.load
    nn.Module.load_state_dict, torch.load = (lambda *_: None), (lambda *_, **__: None)
    try:
        with narrow(32 // width):
            net = fidelity.FeatureExtractorInceptionV3(
                "inception", list(TAPS), feature_extractor_weights_path="none"
            )
    finally:
        nn.Module.load_state_dict, torch.load = load, read
    return fill(f"inception {width}", net)


def pytorch_inception(width, state):
    """pytorch-fid's network with the same weights, in its own sequence of blocks."""
    own = pytorch_fid.inception.load_state_dict_from_url
    pytorch_fid.inception.load_state_dict_from_url = lambda *_, **__: state
    try:
        with narrow(32 // width):
            return pytorch_fid.inception.InceptionV3().eval()
    finally:
        pytorch_fid.inception.load_state_dict_from_url = own


def record_inception():
    for width, count in ((2, 2), (32, 1)):
        net = fidelity_inception(width)
        images = nchw(patterns(count, 299, 299, seed=0))
        for tap, value in zip(TAPS, net(images), strict=True):
            keep(f"inception {width} {tap}", value)
        theirs = pytorch_inception(width, net.state_dict())
        with torch.no_grad():
            keep(f"pytorch-fid {width} 2048", theirs(images.float() / 255)[0].flatten(1))
        if width == 2:
            record_sets(net, theirs)


def record_resizes():
    for i, (height, width) in enumerate(SIZES):
        image = patterns(1, height, width, seed=3 + i)
        tensor = nchw(image).float()
        like_tensorflow = interpolate_bilinear_2d_like_tensorflow1x(
            tensor, size=(299, 299), align_corners=False
        )
        bilinear = nn.functional.interpolate(
            tensor / 255, size=(299, 299), mode="bilinear", align_corners=False
        )
        clean = cleanfid.resize.build_resizer("clean")(image[0])
        for name, value in {
            "torch-fidelity": ((like_tensorflow - 128) / 128)[0].permute(1, 2, 0),
            "pytorch-fid": (2 * bilinear - 1)[0].permute(1, 2, 0),
            "clean": (clean - 128) / 128,
        }.items():
            keep(f"resize {name} {height}", value[::13, ::13])


@torch.no_grad()
def record_sets(net, pytorch_net):
    """From pictures to every tool's figure."""
    sets = [patterns(12, 60, 48, seed=1), patterns(10, 80, 70, seed=2)]

    def clean(image):
        """clean-fid resizes, then runs the same network, which ships as TorchScript."""
        pixels = torch.from_numpy(cleanfid.resize.build_resizer("clean")(image))
        # The extractor resizes and rounds nothing at 299 pixels, but asks for bytes.
        return run_float(net, pixels.permute(2, 0, 1)[None])

    features = [dict(zip(TAPS, net(nchw(images)), strict=True)) for images in sets]
    record_figures("pictures", features[0]["2048"], features[1]["2048"], 10)
    record_is("pictures", features[0]["logits_unbiased"])
    # Of these two the first eight pictures, one batch of ours.
    sets = [images[:8] for images in sets]
    rows = [pytorch_net(nchw(images).float() / 255)[0].flatten(1).numpy() for images in sets]
    keep("pictures pytorch-fid fid", pytorch_fid_of(*rows))
    rows = [torch.cat([clean(image) for image in images]).numpy() for images in sets]
    keep("pictures clean fid", clean_fid_of(*rows))


def run_float(net, pixels):
    """torch-fidelity's network on pixels that are not rounded, features 2048."""
    own = fidelity.vassert
    fidelity.vassert = lambda *_: None
    try:
        return net(pixels)[TAPS.index("2048")]
    finally:
        fidelity.vassert = own


def pytorch_fid_of(a, b):
    statistics = [x for rows in (a, b) for x in (rows.mean(0), np.cov(rows, rowvar=False))]
    return pytorch_fid.fid_score.calculate_frechet_distance(*statistics)


def clean_fid_of(a, b):
    statistics = [x for rows in (a, b) for x in (rows.mean(0), np.cov(rows, rowvar=False))]
    return cleanfid.fid.frechet_distance(*statistics)


def record_figures(name, a, b, subset_size):
    statistics = [fid_features_to_statistics(rows) for rows in (a, b)]
    keep(f"{name} torch-fidelity fid", *fid_statistics_to_metric(*statistics, False).values())
    found = kid_features_to_metric(
        a, b, kid_subset_size=subset_size, kid_subsets=100, rng_seed=2020, verbose=False
    )
    for key, value in zip(("kid", "kid std"), found.values(), strict=True):
        keep(f"{name} torch-fidelity {key}", value)


def record_is(name, logits):
    found = isc_features_to_metric(logits)
    for key, value in zip(("is", "is std"), found.values(), strict=True):
        keep(f"{name} torch-fidelity {key}", value)


def record_clouds():
    """From features to every tool's figure, with more rows than channels."""
    a, b = clouds(300, 64, seed=1), clouds(200, 64, seed=2)
    record_figures("clouds", torch.from_numpy(a), torch.from_numpy(b), 200)
    record_is("clouds", torch.from_numpy(a))
    keep("clouds pytorch-fid fid", pytorch_fid_of(a, b))
    keep("clouds clean fid", clean_fid_of(a, b))


# ---- LPIPS, FaceNet ----------------------------------------------------------------------------


def record_lpips():
    images = [nchw(patterns(3, 64, 80, seed)).float() / 127.5 - 1 for seed in (5, 6)]
    for net, by in (("alex", 1), ("vgg", 16), ("vgg", 1)):
        with narrow(by):
            whole = lpips.LPIPS(net=net, pretrained=False, pnet_rand=True, verbose=False)
        # The heads are stored twice, as lin0 and lins.0.
        state = seeded(remember_shapes(f"lpips {net} {by}", whole))
        for key in [key for key in state if key.startswith("lins.")]:
            state[key] = state["lin" + key.removeprefix("lins.")]
        known = {key: getattr(lpips.ScalingLayer(), key) for key in ("shift", "scale")}
        state |= {f"scaling_layer.{key}": value.numpy() for key, value in known.items()}
        whole.load_state_dict({k: torch.from_numpy(v) for k, v in state.items()})
        with torch.no_grad():
            total, layers = whole.eval()(*images, retPerLayer=True)
        keep(f"lpips {net} {by}", total.flatten())
        keep(f"lpips {net} {by} layers", torch.stack([x.flatten() for x in layers]))


def record_facenet():
    for width in (2, 32):
        with narrow(32 // width):
            net = fill(f"facenet {width}", facenet.InceptionResnetV1())
        raw = []
        net.last_bn.register_forward_hook(lambda _, __, out, raw=raw: raw.append(out))
        images = nchw(patterns(2, 160, 160, seed=7)).float()
        with torch.no_grad():
            net((images - 127.5) / 128)
        keep(f"facenet {width}", raw[0])
    picture = Image.fromarray(patterns(1, 200, 240, seed=8)[0])
    for i, box in enumerate(((40.7, 30.2, 121.9, 150.4), (-8.0, 100.0, 90.0, 230.0))):
        keep(f"face {i}", extract_face(picture, np.array(box))[:, ::7, ::7].permute(1, 2, 0))


def main():
    torch.manual_seed(0)
    for record in (record_inception, record_resizes, record_clouds, record_lpips, record_facenet):
        record()
        print(record.__name__, flush=True)
    np.savez_compressed(FILE, **FOUND)
    print(FILE, FILE.stat().st_size)


if __name__ == "__main__":
    main()
