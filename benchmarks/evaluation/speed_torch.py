"""The metrics of benchmarks.evaluation.speed on torch, by the classes that others measure with.

CLIP and DINO are transformers', with its image processor for CLIP and the steps of torchvision's
transforms for DINO, as facebookresearch composes them. Faces are aligned by InsightFace's norm_crop
and read by an IResNet with arcface_torch's keys. LPIPS is AlexNet in the lpips package's layout;
that package itself imports torchvision, which does not load beside torch 2.13.0.

Only processes that measure torch import this.
"""

import itertools
import time
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch
import transformers
from insightface.utils.face_align import norm_crop
from PIL import Image
from safetensors.torch import load_file
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

from benchmarks.evaluation.speed_material import (
    ALEX,
    METRICS,
    PERSON,
    SIZES,
    Material,
    likeness,
    per_person,
    to_others,
)
from data_pipeline.faces.align import align_face
from tests.helpers.iresnet_twin import TorchIResNet

BATCHES = (8, 16, 32)
TRIED = 32  # images with which settings are compared
LPIPS_SIDE = 256  # as our image diversity resizes
SHIFT = (-0.030, -0.088, -0.188)
SCALE = (0.458, 0.448, 0.450)
IMAGENET = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


class AlexMaps(nn.Module):
    """The five maps of AlexNet that LPIPS compares, by the lpips package's keys.

    A map comes as rows [n, h w c] of which |a - b|² is the package's distance by this map: cells'
    channels of length 1, times the roots of the head's weights, over the root of h w.
    """

    def __init__(self, widths: Sequence[int]):
        super().__init__()
        self.net, before = nn.Module(), 3
        for n, (after, (side, stride, padding, index)) in enumerate(zip(widths, ALEX, strict=True)):
            part = nn.Sequential()
            if n in (1, 2):
                part.add_module("pool", nn.MaxPool2d(3, 2))
            part.add_module(str(index), nn.Conv2d(before, after, side, stride, padding))
            part.add_module("relu", nn.ReLU())
            setattr(self.net, f"slice{n + 1}", part)
            head = nn.Module()
            head.model = nn.ModuleList([nn.Identity(), nn.Conv2d(after, 1, 1, bias=False)])
            setattr(self, f"lin{n}", head)
            before = after
        for name, values in (("shift", SHIFT), ("scale", SCALE)):
            table = torch.tensor(values)[:, None, None]
            self.register_buffer(name, table, persistent=False)

    def forward(self, x):
        x, rows = (x - self.shift) / self.scale, []
        for n in range(len(ALEX)):
            x = getattr(self.net, f"slice{n + 1}")(x)
            unit = x / (x.square().sum(1, keepdim=True).sqrt() + 1e-10)
            weights = getattr(self, f"lin{n}").model[1].weight
            rows.append((unit * (weights / x.shape[2] / x.shape[3]).sqrt()).flatten(1))
        return torch.cat(rows, 1)


class TorchMetrics:
    """All metrics, from the files of ``write_weights``.

    Attributes:
        settings: of each metric, images at once and whether their channels come last.
        checked: what ``features`` gave last, by metric.
    """

    def __init__(self, folder: Path, size: str, threads: int):
        torch.set_num_threads(threads)
        warnings.filterwarnings("ignore", "`estimate` is deprecated")  # of scikit-image
        self.clip = transformers.CLIPModel.from_pretrained(folder / "clip").eval()
        self.tokenizer = transformers.CLIPTokenizer.from_pretrained(folder / "clip")
        self.processor = CLIPImageProcessorPil()
        dino = transformers.ViTModel.from_pretrained(folder / "dino", add_pooling_layer=False)
        face, alex = TorchIResNet(**SIZES[size]["face"]), AlexMaps(SIZES[size]["alex"])
        face.load_state_dict(load_file(folder / "face.safetensors"))
        alex.load_state_dict(load_file(folder / "lpips.safetensors"))
        self.dino, self.face, self.alex = dino.eval(), face.eval(), alex.eval()
        self.settings = dict.fromkeys(METRICS, (BATCHES[0], False))
        self.checked: dict[str, np.ndarray] = {}

    # ---- Metrics: figures of all images --------------------------------------------------------

    @torch.inference_mode()
    def measure(self, metric: str, material: Material) -> np.ndarray:
        """The figure of each image, [n]; the features remain in ``checked``."""
        found = getattr(self, metric)(material, *self.settings[metric])
        self.checked[metric], values = found
        return values

    def clip_t(self, material, batch, last):
        once = list(dict.fromkeys(material.prompts))
        features = self._of_images(self._clip, material.images, batch, last)
        texts = np.concatenate([self._texts(part) for part in parts_of(once, batch)])
        rows = [once.index(prompt) for prompt in material.prompts]
        return features, 100 * (features * texts[rows]).sum(-1)

    def clip_i(self, material, batch, last):
        features = self._of_images(self._clip, material.images, batch, last)
        return features, likeness(features)

    def dino_i(self, material, batch, last):
        features = self._of_images(self._dino, material.images, batch, last)
        return features, likeness(features)

    def face_sim(self, material, batch, last):
        pairs = list(zip(material.images, material.landmarks, strict=True))
        features = self._of_images(self._face, pairs, batch, last)
        return features, likeness(features)

    def lpips(self, material, batch, last):
        tables = []
        for part in per_person(len(material.images)):
            pieces = parts_of(material.images[part], batch)
            rows = torch.cat([self._alex(piece, last) for piece in pieces])
            root = torch.cdist(rows, rows, compute_mode="use_mm_for_euclid_dist")
            tables.append(root.square().numpy())
        return np.concatenate([table.ravel() for table in tables]), to_others(tables)

    # ---- Networks: a batch of images -------------------------------------------------------------

    def _of_images(self, network: Callable, images: Sequence, batch: int, last: bool) -> np.ndarray:
        return np.concatenate([network(part, last) for part in parts_of(images, batch)])

    def _clip(self, images, last):
        pixels = self.processor(images=list(images), return_tensors="pt")["pixel_values"]
        return unit(self.clip.get_image_features(in_layout(pixels, last)).pooler_output)

    def _texts(self, texts):
        ids = self.tokenizer(texts, padding=True, truncation=True, return_tensors="pt")
        return unit(self.clip.get_text_features(**ids).pooler_output)

    def _dino(self, images, last):
        mean, std = (torch.tensor(values)[:, None, None] for values in IMAGENET)
        tensors = []
        for image in images:  # Resize(256, bicubic), CenterCrop(224), ToTensor(), Normalize()
            small = Image.fromarray(image).resize((256, 256), Image.Resampling.BICUBIC)
            tensor = to_tensor(np.asarray(small.crop((16, 16, 240, 240))))
            tensors.append(tensor.float().div_(255).sub_(mean).div_(std))
        pixels = in_layout(torch.stack(tensors), last)
        return unit(self.dino(pixels).last_hidden_state[:, 0])

    def _face(self, pairs, last):
        # InsightFace counts from the centre of the first pixel.
        crops = [norm_crop(image, (points - 0.5).astype(np.float32)) for image, points in pairs]
        return self._of_crops(crops, last)

    def _of_crops(self, crops, last):
        pixels = torch.stack([to_tensor(crop) for crop in crops])
        return unit(self.face(in_layout(pixels.float().sub_(127.5).div_(127.5), last)))

    def _alex(self, images, last):
        side = (LPIPS_SIDE, LPIPS_SIDE)
        small = [Image.fromarray(image).resize(side, Image.Resampling.BICUBIC) for image in images]
        pixels = torch.stack([to_tensor(np.asarray(image)) for image in small])
        return self.alex(in_layout(pixels.float().div_(127.5).sub_(1), last))

    # ---- Before the rounds -----------------------------------------------------------------------

    @torch.inference_mode()
    def flops(self, material: Material) -> dict[str, float]:
        """Of the networks for all images, of each metric."""
        count, texts = len(material.images), len(dict.fromkeys(material.prompts))
        clip = self._count(lambda: self._clip(material.images[:1], False))
        return {
            "clip_t": count * clip + texts * self._count(lambda: self._texts(material.prompts[:1])),
            "clip_i": count * clip,
            "dino_i": count * self._count(lambda: self._dino(material.images[:1], False)),
            "face_sim": count * self._count(lambda: self._of_crops(FACE, False)),
            "lpips": count * self._count(lambda: self._alex(material.images[:1], False)),
        }

    def _count(self, run) -> int:
        # Attention as products, which the counter sees.
        with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
            run()
        return counter.get_total_flops()

    def choose(self, material: Material) -> None:
        """Take the fastest setting of each metric; the networks' weights get its layout."""
        few = material.first(TRIED)
        networks = {"clip_i": self.clip, "dino_i": self.dino, "face_sim": self.face}
        for metric, network in {**networks, "lpips": self.alex}.items():
            seconds = {}
            for last, batch in itertools.product((False, True), BATCHES):
                network.to(memory_format=torch.channels_last if last else torch.contiguous_format)
                self.settings[metric] = batch, last
                self.measure(metric, few)
                times = []
                for _ in range(2):
                    start = time.perf_counter()
                    self.measure(metric, few)
                    times.append(time.perf_counter() - start)
                seconds[batch, last] = min(times)
            batch, last = min(seconds, key=seconds.__getitem__)
            self.settings[metric] = min(batch, PERSON) if metric == "lpips" else batch, last
            network.to(memory_format=torch.channels_last if last else torch.contiguous_format)
        self.settings["clip_t"] = self.settings["clip_i"]

    @torch.inference_mode()
    def of_our_crops(self, material: Material) -> np.ndarray:
        """Features of faces that are aligned as ours."""
        pairs = zip(material.images, material.landmarks, strict=True)
        return self._of_crops([align_face(*pair) for pair in pairs], False)


FACE = np.zeros((1, 112, 112, 3), np.uint8)


def parts_of(rows: Sequence, size: int) -> list:
    return [rows[start : start + size] for start in range(0, len(rows), size)]


def to_tensor(image: np.ndarray) -> torch.Tensor:
    """[h, w, 3] to [3, h, w]."""
    return torch.from_numpy(image.copy()).permute(2, 0, 1)


def in_layout(pixels: torch.Tensor, last: bool) -> torch.Tensor:
    layout = torch.channels_last if last else torch.contiguous_format
    return pixels.contiguous(memory_format=layout)


def unit(rows: torch.Tensor) -> np.ndarray:
    return (rows / rows.norm(dim=-1, keepdim=True)).numpy()


def matmul_rate(side: int = 2048, tries: int = 5) -> float:
    """FLOP/s of the fastest of a few float32 products."""
    matrix, times = torch.ones(side, side), []
    for _ in range(tries + 1):
        start = time.perf_counter()
        torch.mm(matrix, matrix)
        times.append(time.perf_counter() - start)
    return 2 * side**3 / min(times)
