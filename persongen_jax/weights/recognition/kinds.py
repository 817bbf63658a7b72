"""What kind of weights a file holds, by the keys and shapes of its tensors.

Every public layout that this project reads has its own kind, and so do layouts that are easily
mistaken for one (Stable Diffusion 1.5's, InstantID, PuLID, adapters other than plain LoRA).
"""

import re
import warnings

from persongen_jax.weights.errors import WeightsError
from persongen_jax.weights.files.onnx_file import OnnxFile
from persongen_jax.weights.files.source import TensorSource
from persongen_jax.weights.recognition.arcface import infer_config
from persongen_jax.weights.recognition.dino import infer_dino_config, name_dino_tensors
from persongen_jax.weights.recognition.embeddings import embedding_facts, looks_like_words
from persongen_jax.weights.recognition.eva_clip import eva_facts
from persongen_jax.weights.recognition.ip_adapter_state import is_training_state, published_names
from persongen_jax.weights.recognition.judges import JUDGES, judge_facts
from persongen_jax.weights.recognition.lora_names import (
    EMBEDDING,
    METADATA_KEY,
    other_kind,
    relatives,
)
from persongen_jax.weights.recognition.open_clip import activation_by_size
from persongen_jax.weights.recognition.pulid import pulid_version
from persongen_jax.weights.recognition.sdxl_facts import refine

# Kind -> its description. The order of ``_RULES`` decides if several match.
NAMES = {
    "sdxl": "a Stable Diffusion directory in diffusers' format",
    "run": "a training run of this project",
    "photomaker-v1": "PhotoMaker v1: ID encoder and LoRA",
    "photomaker-v2": "PhotoMaker v2: ID encoder with a face-embedding resampler, and LoRA",
    "id-encoder": "PhotoMaker's ID encoder without its LoRA",
    "ip-adapter": "an IP-Adapter, base",
    "ip-adapter-plus": "an IP-Adapter, plus (resampler)",
    "ip-adapter-full": "an IP-Adapter, full-face",
    "ip-adapter-faceid": "an IP-Adapter, FaceID",
    "ip-adapter-faceid-plus": "an IP-Adapter, FaceID plus",
    "instantid": "InstantID's IP-Adapter",
    "pulid": "PuLID",
    "pulid-flux": "PuLID for FLUX, which is not read here",
    "checkpoint": "a single-file checkpoint with sgm's names",
    "lora-diffusers": "a LoRA in diffusers' style",
    "lora-peft": "a LoRA in PEFT's style",
    "lora-kohya": "a LoRA in kohya's style",
    "lora-comfy": "a LoRA in ComfyUI's or OneTrainer's style",
    "lora-relative": "an adapter of LoRA's family",
    "lora-processors": "a LoRA in the style of diffusers' old attention processors",
    "other-adapter": "an adapter other than plain LoRA",
    "embedding": "a Textual Inversion embedding",
    "controlnet": "a ControlNet in diffusers' format",
    "unet": "a UNet in diffusers' format",
    "unet-sgm": "a UNet alone, with sgm's names",
    "vae": "a VAE in diffusers' format",
    "vae-sgm": "a VAE alone, with sgm's names",
    "other-base": "a base model of another family, which is not read here",
    "clip": "CLIP, both towers",
    "clip-original": "CLIP, both towers, in OpenAI's and OpenCLIP's layout",
    "eva-clip": "EVA-CLIP: the image tower of EVA's CLIP, with or without its text tower",
    "clip-text": "a CLIP text tower",
    "clip-vision": "a CLIP image tower",
    "dino": "DINO's image encoder, or another plain ViT with its names",
    "dinov2": "DINOv2's image encoder",
    "arcface": "an ArcFace recogniser (IResNet)",
    "facenet": "FaceNet's recogniser (Inception-ResNet-v1) in facenet-pytorch's layout",
    "inception": "Inception-v3: FID's, or another one with its names",
    "lpips": "LPIPS: a backbone and its heads",
    "lpips-heads": "LPIPS' heads without a backbone",
    "lpips-backbone": "a backbone of LPIPS: the convolutions of AlexNet or VGG",
    "onnx": "an ONNX graph that is not an ArcFace recogniser",
    "unknown": "of no layout that is known here",
}

_VIT = r"((vit|dinov2)\.)?"  # what transformers' classifiers put in front of their encoder's keys

# Kind -> patterns; each of them must match the beginning of some key.
_RULES = (
    ("photomaker-v2", (r"id_encoder\.qformer_perceiver\.", r"lora_weights\.")),
    ("photomaker-v1", (r"id_encoder\.", r"lora_weights\.")),
    ("id-encoder", (r"(id_encoder\.)?visual_projection_2\.", r"(id_encoder\.)?fuse_module\.")),
    ("pulid", (r"id_adapter",)),
    ("pulid", (r"image_proj\.(body|id_embedding_mapping)\.0\.", r"ip_adapter\.\d+\.")),
    ("pulid-flux", (r"pulid_(encoder|ca)\.",)),
    ("ip-adapter", (r"image_proj\.", r"ip_adapter\.\d+\.")),
    ("checkpoint", (r"model\.diffusion_model\.",)),
    ("lora-kohya", (r"(lora_(unet|te\d?)|lycoris)_.*\.lora_(down|up)\.weight$",)),
    ("lora-comfy", (r".*\.lora_(down|up)\.weight$",)),
    ("lora-peft", (r".*\.lora_(A|B)(\.[^.]+)?\.weight$",)),
    ("lora-diffusers", (r".*\.lora(_linear_layer)?\.(down|up)\.weight$",)),
    ("lora-processors", (r".*\.(processor\.)?to_(q|k|v|out)_lora\.(down|up)\.weight$",)),
    ("controlnet", (r"controlnet_cond_embedding\.",)),
    ("unet", (r"conv_in\.", r"time_embedding\.", r"down_blocks\.")),
    ("vae", (r"encoder\.conv_in\.", r"decoder\.conv_in\.")),
    ("clip", (r"(text_model|text_projection)\.", r"(vision_model|visual_projection)\.")),
    ("clip-vision", (r"(vision_model\.)?embeddings\.patch_embedding\.",)),
    ("clip-text", (r"(text_model\.)?embeddings\.token_embedding\.",)),
    ("clip-original", (r"visual\.transformer\.resblocks\.", r"(text\.)?transformer\.resblocks\.")),
    ("eva-clip", (r"visual\.(trunk\.)?blocks\.0\.attn\.",)),
    ("eva-clip", (r"blocks\.0\.attn\.q_proj\.", r"blocks\.0\.attn\.(inner_attn_ln|norm)\.")),
    ("clip-text", (r"token_embedding\.", r"transformer\.resblocks\.")),
    ("embedding", (r"(clip_[lg]|text_encoders_[01]|emb_params|string_to_param\..*)$",)),
    ("dinov2", (r"(backbone\.)?blocks\.0\.ls1\.gamma", r"(backbone\.)?patch_embed\.proj\.")),
    ("dinov2", (rf"{_VIT}embeddings\.patch_emb", rf"{_VIT}encoder\.layer\.\d+\.layer_scale1\.")),
    ("dino", (r"(backbone\.)?blocks\.0\.attn\.qkv\.", r"(backbone\.)?patch_embed\.proj\.")),
    ("dino", (rf"{_VIT}embeddings\.patch_embeddings\.proj", rf"{_VIT}embeddings\.cls_token$")),
    ("arcface", (r"layer1\.0\.conv1\.weight", r"fc\.weight")),
    ("facenet", (r"repeat_1\.0\.branch0\.conv\.", r"last_linear\.")),
    ("inception", (r"Mixed_7c\.branch3x3dbl_3b\.conv\.", r"fc\.weight")),
    ("lpips", (r"net\.slice1\.0\.", r"lin0\.model\.\d+\.weight")),
    ("lpips-heads", (r"lin0\.model\.\d+\.weight", r"lin4\.model\.\d+\.weight")),
    ("lpips-backbone", (r"net\.slice1\.0\.", r"net\.slice5\.")),
    ("lpips-backbone", (r"features\.0\.weight$", r"features\.10\.weight$")),
)

# Width of the text states -> model family.
_FAMILIES = {768: "SD 1.x", 1024: "SD 2.x", 1280: "the SDXL refiner", 2048: "SDXL"}
_TOWERS = {1280: "ViT-bigG", 1024: "ViT-H"}
FACE = 512  # length of an ArcFace embedding
ADAPTER_NOTE = "adapter"  # what our own files' metadata call the kind that no key shows

# A cross-attention's key or value projection, whose inputs are the text states.
_CONTEXT = re.compile(
    r".*attn2[._](processor\.)?to_[kv](_lora)?\.?(lora|lora_linear_layer)?\.?"
    r"(weight|down\.weight|lora_A(\.[^.]+)?\.weight|lora_down\.weight)$"
    r"|ip_adapter\.\d+\.to_[kv]_ip\.weight$"
    r"|id_adapter_attn_layers\.\d+\.id_to_[kv]\.weight$"
)
_DOWN = re.compile(r".*(lora_A(\.[^.]+)?|lora_down|lora\.down|lora_linear_layer\.down)\.weight$")

# The number of sizes of an IP-Adapter's projection tensors that distinguish the variants.
_PROJECTION_DIMS = {
    "latents": 3,
    "proj_in.weight": 2,
    "proj.weight": 2,
    "proj.0.weight": 2,
    "proj.2.weight": 2,
}


def classify(source: TensorSource) -> tuple[str, dict]:
    """(kind, facts) from the keys and shapes."""
    if isinstance(source, OnnxFile):
        return "onnx", {"operations": len(source.nodes)}
    if is_training_state(source):
        with warnings.catch_warnings():  # about left-out keys, which matter only when loading
            warnings.simplefilter("ignore")
            kind, facts = _ip_adapter(published_names(source))
        return kind, {"from": "a training state", **facts}
    keys = source.keys()
    if other := next((name for name in map(other_kind, keys) if name), None):
        if any(re.match(r"(lora_|lycoris_|unet\.|text_encoder|bundle_emb)", key) for key in keys):
            return "other-adapter", {"adapter": other}
    if found := relatives(keys):
        return "lora-relative", {"kinds": ", ".join(dict.fromkeys(found)), **_facts("lora", source)}
    kind = "unknown"
    for name, patterns in _RULES:
        if all(any(re.match(pattern, key) for key in keys) for pattern in patterns):
            kind = name
            break
    if kind == "ip-adapter":
        return _ip_adapter(source)
    if kind in ("checkpoint", "unet", "vae", "unknown"):
        kind, facts = refine(kind, source)
        if kind == "unknown" and looks_like_words(source):
            return "embedding", embedding_facts(source)
        return kind, {**facts, **_facts(kind, source)}
    return kind, _facts(kind, source)


def _facts(kind: str, source: TensorSource) -> dict:
    facts = {}
    if kind == "arcface":
        config = infer_config(source)
        keys = ("layers", "embedding_dim", "input_size")
        return {key.replace("_", " "): config[key] for key in keys}
    if kind in ("dino", "dinov2"):
        return _dino(source)
    if kind == "eva-clip":
        return eva_facts(source)
    if kind in JUDGES:
        return judge_facts(kind, source)
    if kind == "embedding":
        return embedding_facts(source)
    if kind == "pulid":
        facts["version"] = pulid_version(source.keys()) or "unknown"
    if kind.startswith(("lora", "photomaker")):
        facts |= _lora(source)
    if width := context_width(source):
        facts["cross-attention width"] = _of(width, _FAMILIES)
    if kind in ("unet", "controlnet") and (shape := _shape(source, r"conv_in\.weight", 4)):
        facts["first channels"] = shape[0]
    if kind == "vae" and (shape := _shape(source, r"encoder\.conv_out\.weight", 4)):
        facts["latent channels"] = shape[0] // 2
    if shape := _shape(source, r".*patch_embedding\.weight", 4):
        facts["image tower"] = f"{shape[0]} wide, patches of {shape[2]}"
    if shape := _shape(source, r".*token_embedding\.weight", 2):
        facts["text tower"] = f"{shape[1]} wide, {shape[0]} words"
    if kind == "clip-original":
        if patches := _shape(source, r"visual\.conv1\.weight", 4):
            facts["image tower"] = f"{patches[0]} wide, patches of {patches[2]}"
        if shape:
            facts["activation"] = activation_by_size(shape[1])
    return facts


def _dino(source: TensorSource) -> dict:
    try:
        config = infer_dino_config(name_dino_tensors(source), position_offset=0.0)
    except WeightsError as error:
        return {"not read": str(error).splitlines()[0]}
    size, patch = config["image_size"], config["patch_size"]
    layers = "with layer scale" if config["layer_scale"] else "without layer scale"
    return {
        "image tower": f"{config['hidden_size']} wide, patches of {patch}",
        "blocks": f"{config['num_hidden_layers']}, {layers}",
        "positions": f"for {size} pixels; other sizes are interpolated",
    }


def _shape(source: TensorSource, pattern: str, dims: int) -> tuple | None:
    """The shape of the first tensor with a matching key and ``dims`` axes; None if there is none.

    Networks unknown here use the same names for tensors of other kinds.
    """
    shapes = (source.info(key)[1] for key in source.keys() if re.fullmatch(pattern, key))
    return next((shape for shape in shapes if len(shape) == dims), None)


def context_width(source: TensorSource) -> int | None:
    """Width of the text states that the cross-attention reads; None if no key shows it."""
    shapes = (source.info(key)[1] for key in source.keys() if _CONTEXT.fullmatch(key))
    return next((shape[1] for shape in shapes if len(shape) > 1), None)


def _ranks(source) -> str:
    """The ranks of the LoRA's layers; "" if there are none."""
    shapes = (source.info(key)[1] for key in source.keys() if _DOWN.fullmatch(key))
    return ", ".join(map(str, sorted({shape[0] for shape in shapes if len(shape)})))


def _lora(source) -> dict:
    ranks = _ranks(source)
    facts = {"rank": ranks} if ranks else {}
    words = {match["token"] for key in source.keys() if (match := EMBEDDING.fullmatch(key))}
    if words:
        facts["words"] = ", ".join(sorted(words))
    if METADATA_KEY in source.metadata or any(key.endswith(".alpha") for key in source.keys()):
        facts["alpha"] = "in the file"
    return facts


def _of(width: int, names: dict) -> str:
    return f"{width} ({names[width]}'s)" if width in names else str(width)


def _ip_adapter(source) -> tuple[str, dict]:
    """The variant by its projection, whose shape is unique to it."""
    shapes = {
        key.removeprefix("image_proj."): source.info(key)[1]
        for key in source.keys()
        if key.startswith("image_proj.")
    }
    shapes = {k: s for k, s in shapes.items() if len(s) == _PROJECTION_DIMS.get(k, len(s))}
    width = context_width(source)
    facts = {} if width is None else {"cross-attention width": _of(width, _FAMILIES)}
    facts["attention layers"] = sum(key.endswith(".to_k_ip.weight") for key in source.keys())
    if "latents" in shapes:
        facts["tokens"] = shapes["latents"][1]
        features = shapes.get("proj_in.weight", (0, 0))[1]
        if features == FACE or source.metadata.get(ADAPTER_NOTE) == "instantid":
            return "instantid", {**facts, "reads": f"face embeddings, {features} wide"}
        return "ip-adapter-plus", {**facts, "image encoder": _of(features, _TOWERS)}
    if "proj.weight" in shapes:
        out, features = shapes["proj.weight"]
        facts["tokens"] = out // width if width else "unknown"
        return "ip-adapter", {**facts, "image encoder": _of(features, _TOWERS)}
    if any(name.startswith("perceiver_resampler.") for name in shapes):
        patches = shapes.get("perceiver_resampler.proj_in.weight", (0, 0))[-1]
        reads = f"face embeddings, {shapes.get('proj.0.weight', (0, 0))[-1]} wide"
        facts |= {"LoRA rank": _ranks(source) or "none", "reads": reads}
        return "ip-adapter-faceid-plus", {**facts, "image encoder": f"patches, {patches} wide"}
    if "proj.3.weight" in shapes:
        return "ip-adapter-full", facts
    if {"proj.0.weight", "proj.2.weight", "norm.weight"} <= shapes.keys():
        features = shapes["proj.0.weight"][1]
        facts["tokens"] = shapes["proj.2.weight"][0] // width if width else "unknown"
        facts["LoRA rank"] = _ranks(source) or "none"
        return "ip-adapter-faceid", {**facts, "reads": f"face embeddings, {features} wide"}
    return "unknown", facts
