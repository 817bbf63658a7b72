"""Identifying files by their keys and shapes alone."""

import json
import struct

import ml_dtypes
import numpy as np
import pytest

from persongen_jax.convert.identify import count, identify, open_parts
from persongen_jax.miniature.__main__ import ASSETS
from persongen_jax.weights.errors import MissingFile, WeightsError
from persongen_jax.weights.files.safetensors_file import NAMES as DTYPE_NAMES
from persongen_jax.weights.licences import say_terms
from persongen_jax.weights.recognition.kinds import NAMES
from tests.helpers.encoders.eva_files import native_names
from tests.helpers.encoders.eva_files import shapes_of as eva_shapes
from tests.helpers.encoders.judge_files import shapes_of
from tests.helpers.encoders.open_clip_files import published_shapes
from tests.helpers.lora_files import ATTENTION, kohya, random_adapters, save

SDXL, SD15 = 2048, 768
KEYS = [f"ip_adapter.{i}.to_k_ip.weight" for i in (1, 3)]


def hollow(path, shapes, metadata=None, dtype=np.float32):
    """A sparse safetensors file of these shapes: fast only if the data are not read."""
    header, position = {"__metadata__": metadata or {}}, 0
    for key, shape in shapes.items():
        end = position + int(np.prod(shape)) * np.dtype(dtype).itemsize
        entry = {"dtype": DTYPE_NAMES[np.dtype(dtype)], "shape": list(shape)}
        header[key] = {**entry, "data_offsets": [position, end]}
        position = end
    raw = json.dumps(header).encode()
    with open(path, "wb") as file:
        file.write(struct.pack("<Q", len(raw)) + raw)
        file.truncate(8 + len(raw) + position)
    return path


def lora(rank=8, width=SDXL, stem="unet.{}.attn2.to_k.lora.{}.weight", names=("down", "up")):
    path = ATTENTION if "{}.attn2" in stem else ATTENTION.replace(".", "_")
    return {stem.format(path, names[0]): (rank, width), stem.format(path, names[1]): (640, rank)}


def ip_adapter(width=SDXL, **image_proj):
    shapes = {f"image_proj.{key.replace('__', '.')}": s for key, s in image_proj.items()}
    return {**shapes, **dict.fromkeys(KEYS, (640, width))}


V1 = {
    "id_encoder.visual_projection_2.weight": (1280, 1024),
    "id_encoder.fuse_module.layer_norm.weight": (2048,),
    "id_encoder.vision_model.embeddings.patch_embedding.weight": (1024, 3, 14, 14),
    **lora(64, stem="lora_weights.unet.{}.attn2.processor.to_k_lora.{}.weight"),
}
FACEID = {"proj__0__weight": (1024, 512), "proj__2__weight": (8192, 1024), "norm__weight": (2048,)}
UNET = {
    "conv_in.weight": (320, 4, 3, 3),
    "time_embedding.linear_1.weight": (1280, 320),
    f"{ATTENTION}.attn2.to_k.weight": (640, SDXL),
}

# name: (tensors, kind, facts that have to be among those found)
FILES = {
    "photomaker v1": (
        V1,
        "photomaker-v1",
        {"rank": "64", "cross-attention width": "2048 (SDXL's)"},
    ),
    "photomaker v2": (
        {**V1, "id_encoder.qformer_perceiver.token_norm.weight": (2048,)},
        "photomaker-v2",
        {"rank": "64"},
    ),
    "an id encoder": ({k: v for k, v in V1.items() if "lora" not in k}, "id-encoder", {}),
    "ip-adapter": (
        ip_adapter(proj__weight=(8192, 1280)),
        "ip-adapter",
        {"tokens": 4, "image encoder": "1280 (ViT-bigG's)", "attention layers": 2},
    ),
    "ip-adapter, ViT-H, SD 1.5": (
        ip_adapter(SD15, proj__weight=(3072, 1024)),
        "ip-adapter",
        {
            "tokens": 4,
            "image encoder": "1024 (ViT-H's)",
            "cross-attention width": "768 (SD 1.x's)",
        },
    ),
    "ip-adapter plus": (
        ip_adapter(latents=(1, 16, 1280), proj_in__weight=(1280, 1280)),
        "ip-adapter-plus",
        {"tokens": 16},
    ),
    "instantid": (
        ip_adapter(latents=(1, 16, 1280), proj_in__weight=(1280, 512)),
        "instantid",
        {"reads": "face embeddings, 512 wide"},
    ),
    "ip-adapter faceid": (
        {**ip_adapter(**FACEID), "ip_adapter.0.to_q_lora.down.weight": (128, 640)},
        "ip-adapter-faceid",
        {"tokens": 4, "LoRA rank": "128"},
    ),
    "ip-adapter faceid plus": (
        ip_adapter(**FACEID, perceiver_resampler__proj_in__weight=(2048, 1280)),
        "ip-adapter-faceid-plus",
        {},
    ),
    "ip-adapter full": (
        ip_adapter(proj__0__weight=(1024, 1024), proj__3__weight=(2048,)),
        "ip-adapter-full",
        {},
    ),
    "pulid-flux": ({"pulid_ca.0.norm1.weight": (3072,)}, "pulid-flux", {}),
    "pulid": ({"id_adapter_attn_layers.0.id_to_k.weight": (640, 2048)}, "pulid", {}),
    "sdxl checkpoint": (
        {
            "model.diffusion_model.label_emb.0.0.weight": (1280, 2816),
            "conditioner.embedders.1.model.ln_final.weight": (1280,),
        },
        "checkpoint",
        {"family": "SDXL", "missing": "the VAE, the first text encoder"},
    ),
    "sd 1.5 checkpoint": (
        {
            "model.diffusion_model.input_blocks.1.1.proj_in.weight": (320, 320, 1, 1),
            "model.diffusion_model.input_blocks.1.1.transformer_blocks.0.attn2.to_k.weight": (
                *(320, SD15),
            ),
            "cond_stage_model.transformer.text_model.x": (1,),
        },
        "checkpoint",
        {"family": "SD 1.x", "parts": "the UNet (sgm), the first text encoder (?)"},
    ),
    "sdxl's unet, in sgm's names": (
        {
            "input_blocks.0.0.weight": (320, 4, 3, 3),
            "middle_block.1.transformer_blocks.0.attn2.to_k.weight": (1280, 2048),
            "label_emb.0.0.weight": (1280, 2816),
            "v_pred": (0,),
            "ztsnr": (0,),
        },
        "unet-sgm",
        {
            "family": "SDXL",
            "predicts": "v_prediction, zero terminal SNR (the tensor v_pred, the tensor ztsnr)",
        },
    ),
    "an inpainting unet, in diffusers' names": (
        {
            "conv_in.weight": (320, 9, 3, 3),
            "time_embedding.linear_1.weight": (1280, 320),
            "add_embedding.linear_1.weight": (1280, 2816),
            f"{ATTENTION}.attn2.to_k.weight": (640, SDXL),
        },
        "unet",
        {"family": "SDXL", "input channels": "9 (SDXL's plain UNet has 4)"},
    ),
    "the refiner's unet": (
        {
            "model.diffusion_model.label_emb.0.0.weight": (1536, 2560),
            "model.diffusion_model.middle_block.1.transformer_blocks.0.attn2.to_k.weight": (
                *(1536, 1280),
            ),
        },
        "unet-sgm",
        {"family": "the SDXL refiner"},
    ),
    "a vae in sgm's names": (
        {
            "first_stage_model.encoder.conv_in.weight": (128, 3, 3, 3),
            "first_stage_model.encoder.down.0.block.0.norm1.weight": (128,),
        },
        "vae-sgm",
        {"stored as": "float32"},
    ),
    "flux": (
        {"model.diffusion_model.double_blocks.0.img_attn.qkv.weight": (9216, 3072)},
        "other-base",
        {"family": "FLUX"},
    ),
    "sd 3, in diffusers' names": (
        {"transformer_blocks.0.attn.add_q_proj.weight": (1536, 1536)},
        "other-base",
        {"family": "SD 3"},
    ),
    "an edm model": (
        {"model.diffusion_model.label_emb.0.0.weight": (1280, 2816), "edm_mean": (4,)},
        "unet-sgm",
        {"predicts": "not clear: the tensors edm_mean mark a model in EDM's parametrisation"},
    ),
    "diffusers lora": (
        lora(),
        "lora-diffusers",
        {"rank": "8", "cross-attention width": "2048 (SDXL's)"},
    ),
    "peft lora": (
        lora(4, SD15, "unet.{}.attn2.to_k.{}.weight", ("lora_A", "lora_B")),
        "lora-peft",
        {"rank": "4", "cross-attention width": "768 (SD 1.x's)"},
    ),
    "kohya lora": (
        {
            **lora(16, stem="lora_unet_{}_attn2_to_k.{}.weight", names=("lora_down", "lora_up")),
            "lora_unet_x.alpha": (),
        },
        "lora-kohya",
        {"rank": "16", "cross-attention width": "2048 (SDXL's)", "alpha": "in the file"},
    ),
    "old lora": (
        lora(stem="unet.{}.attn2.processor.to_k_lora.{}.weight"),
        "lora-processors",
        {"rank": "8"},
    ),
    "loha": ({"lora_unet_x.hada_w1_a": (4, 4)}, "lora-relative", {"kinds": "LoHa"}),
    "dora": (
        {**lora(), "unet.x.dora_scale": (4,)},
        "lora-relative",
        {"kinds": "DoRA", "rank": "8"},
    ),
    "oft": ({"lora_unet_x.oft_blocks": (4, 4)}, "other-adapter", {"adapter": "OFT"}),
    "comfy lora": (
        lora(4, stem="diffusion_model.{}.attn2.to_k.{}.weight", names=("lora_down", "lora_up")),
        "lora-comfy",
        {"rank": "4"},
    ),
    "peft's named adapter": (
        lora(4, stem="{}.attn2.to_k.{}.mine.weight", names=("lora_A", "lora_B")),
        "lora-peft",
        {"rank": "4", "cross-attention width": "2048 (SDXL's)"},
    ),
    "controlnet": (
        {**UNET, "controlnet_cond_embedding.conv_in.weight": (16, 3, 3, 3)},
        "controlnet",
        {"first channels": 320},
    ),
    "unet": (UNET, "unet", {"first channels": 320, "cross-attention width": "2048 (SDXL's)"}),
    "vae": (
        {
            "encoder.conv_in.weight": (128, 3, 3, 3),
            "encoder.conv_out.weight": (8, 512, 3, 3),
            "decoder.conv_in.weight": (512, 4, 3, 3),
        },
        "vae",
        {"latent channels": 4},
    ),
    "clip": (
        {
            "text_model.embeddings.token_embedding.weight": (100, 16),
            "vision_model.embeddings.patch_embedding.weight": (32, 3, 8, 8),
            "logit_scale": (),
        },
        "clip",
        {"image tower": "32 wide, patches of 8", "text tower": "16 wide, 100 words"},
    ),
    "clip, openai's": (
        published_shapes((512, 1, 2048), (768, 1, 3072), 512, 32, 224),
        "clip-original",
        {
            "image tower": "768 wide, patches of 32",
            "text tower": "512 wide, 49408 words",
            "activation": "quick GELU if OpenAI's, usually GELU if OpenCLIP's: shapes do not show "
            "it",
        },
    ),
    "clip, openclip's bigG": (
        published_shapes((1280, 1, 5120), (1664, 1, 8192), 1280, 14, 224),
        "clip-original",
        {"activation": "GELU, as OpenAI has published none of this size"},
    ),
    "openclip's text tower": (
        {"token_embedding.weight": (9, 8), "transformer.resblocks.0.ln_1.weight": (8,)},
        "clip-text",
        {},
    ),
    "eva-clip, openclip's": (
        eva_shapes("published"),
        "eva-clip",
        {
            "image tower": "1024 wide, patches of 14",
            "blocks": "24, with rotary positions and SwiGLU",
            "image size": 336,
            "image embedding": 768,
            "text tower": "768 wide, 49408 words",
        },
    ),
    "eva-clip, the authors', its older text tower": (
        {k.removeprefix("text."): s for k, s in native_names(eva_shapes("tiny")).items()},
        "eva-clip",
        {"image size": 24, "text tower": "128 wide, 1000 words"},
    ),
    "eva-clip, the image tower alone": (
        {
            key.removeprefix("visual.trunk."): shape
            for key, shape in eva_shapes("tiny").items()
            if key.startswith("visual.")
        },
        "eva-clip",
        {"text tower": "none, so that CLIP-T cannot be measured with it"},
    ),
    "eva-01's clip": (
        {"visual.blocks.0.attn.qkv.weight": (4224, 1408), "text.ln_final.bias": (768,)},
        "eva-clip",
        {},
    ),
    "clip text": ({"embeddings.token_embedding.weight": (100, 16)}, "clip-text", {}),
    "clip vision": (
        {"vision_model.embeddings.patch_embedding.weight": (32, 3, 8, 8)},
        "clip-vision",
        {},
    ),
    "dino": (
        {
            "cls_token": (1, 1, 384),
            "pos_embed": (1, 197, 384),
            "patch_embed.proj.weight": (384, 3, 16, 16),
            "blocks.0.attn.qkv.weight": (1152, 384),
            "blocks.0.mlp.fc1.weight": (1536, 384),
        },
        "dino",
        {
            "image tower": "384 wide, patches of 16",
            "positions": "for 224 pixels; other sizes are interpolated",
        },
    ),
    "dino, in transformers' names": (
        {
            "embeddings.cls_token": (1, 1, 384),
            "embeddings.position_embeddings": (1, 197, 384),
            "embeddings.patch_embeddings.projection.weight": (384, 3, 16, 16),
            "encoder.layer.0.intermediate.dense.weight": (1536, 384),
        },
        "dino",
        {"image tower": "384 wide, patches of 16", "blocks": "1, without layer scale"},
    ),
    "dinov2": (
        {
            "pos_embed": (1, 1370, 384),
            "patch_embed.proj.weight": (384, 3, 14, 14),
            "blocks.0.ls1.gamma": (384,),
            "blocks.0.mlp.fc1.weight": (1536, 384),
        },
        "dinov2",
        {
            "image tower": "384 wide, patches of 14",
            "blocks": "1, with layer scale",
            "positions": "for 518 pixels; other sizes are interpolated",
        },
    ),
    "dinov2, in transformers' names": (
        {
            "embeddings.patch_embeddings.projection.weight": (384, 3, 14, 14),
            "embeddings.position_embeddings": (1, 1370, 384),
            "encoder.layer.0.layer_scale1.lambda1": (384,),
            "encoder.layer.0.mlp.fc1.weight": (1536, 384),
        },
        "dinov2",
        {"blocks": "1, with layer scale"},
    ),
    "a vit of other shapes": (
        {"patch_embed.proj.weight": (8,), "blocks.0.attn.qkv.weight": (8,)},
        "dino",
        {},
    ),
    "fid's inception": (
        shapes_of("inception 32"),
        "inception",
        {"features": 2048, "classes": 1008},
    ),
    "torchvision's inception": (
        {**shapes_of("inception 2"), "fc.weight": (1000, 128)},
        "inception",
        {},
    ),
    "facenet": (
        {**shapes_of("facenet 32"), "logits.weight": (8631, 512)},
        "facenet",
        {"embedding dim": 512, "input size": 160},
    ),
    "lpips": (shapes_of("lpips vgg 1"), "lpips", {"net": "vgg"}),
    "lpips' heads": (
        {f"lin{i}.model.1.weight": (1, c, 1, 1) for i, c in enumerate((64, 192, 384, 256, 256))},
        "lpips-heads",
        {"net": "alex"},
    ),
    "alexnet, in torchvision's names": (
        {
            key.replace("net.slice", "features.").replace(f"features.{key[9]}", "features"): shape
            for key, shape in shapes_of("lpips alex 1").items()
            if key.startswith("net.")
        },
        "lpips-backbone",
        {"net": "alex"},
    ),
    "something else": ({"a.b": (2, 2)}, "unknown", {}),
    "nothing at all": ({}, "unknown", {}),
    "a video model": ({"patch_embedding.weight": (64, 16, 1, 2, 2)}, "unknown", {}),
    "half of a faceid projection": (
        ip_adapter(proj__0__weight=(1024, 512), norm__weight=(2048,)),
        "unknown",
        {"attention layers": 2},
    ),
    "towers of other kinds": (
        {
            "vision_model.embeddings.patch_embedding.weight": (8,),
            "text_model.embeddings.token_embedding.weight": (8,),
        },
        "clip",
        {},
    ),
    "a projection of other kinds": (ip_adapter(latents=(16,), proj__weight=()), "unknown", {}),
    "a lora of numbers": ({f"unet.{ATTENTION}.attn2.to_k.lora_A.weight": ()}, "lora-peft", {}),
    "a word": ({"clip_l": (2, 768), "clip_g": (2, 1280)}, "embedding", {}),
    "a unet of other shapes": (dict.fromkeys(UNET, (8,)), "unet", {}),
}


@pytest.mark.parametrize("name", FILES)
def test_kinds(name, tmp_path):
    shapes, kind, facts = FILES[name]
    found = identify(hollow(tmp_path / "a.safetensors", shapes))
    assert found.kind == kind and found.what == NAMES[kind]
    assert facts.items() <= found.facts.items()


def test_every_kind_that_files_can_have_is_tried():
    folders = {"sdxl", "run", "arcface", "onnx"}  # below, and in test_import.py
    assert {kind for _, kind, _ in FILES.values()} == set(NAMES) - folders


def test_a_large_file_is_not_read(tmp_path):
    """A sparse file of ten gigabytes: reading it would take memory and minutes."""
    path = hollow(tmp_path / "a.safetensors", {"x": (2_500_000_000,)}, dtype=ml_dtypes.bfloat16)
    assert identify(path).kind == "unknown"
    parts = open_parts(path)
    assert count(parts) == (1, 2_500_000_000, 5_000_000_000, {"bfloat16": 1})
    parts[""].close()


def test_torch_files_by_the_same_rules(tmp_path):
    torch = pytest.importorskip("torch")
    flat = {key: torch.zeros(1).expand(shape) for key, shape in V1.items()}
    nested = {
        part: {k.removeprefix(part + "."): v for k, v in flat.items() if k.startswith(part)}
        for part in ("id_encoder", "lora_weights")
    }
    torch.save(nested, tmp_path / "photomaker-v1.bin")
    assert identify(tmp_path / "photomaker-v1.bin").kind == "photomaker-v1"


def test_our_own_kohya_files(tmp_path):
    shapes = {"unet": {f"{ATTENTION}.attn2.to_k": (64, 96)}}
    adapters = random_adapters(shapes, {"unet": list(shapes["unet"])}, alphas=(2.0,))
    found = identify(save(tmp_path / "a.safetensors", kohya(adapters, sgm=False)))
    assert found.kind == "lora-kohya"
    assert found.facts == {"rank": "4", "alpha": "in the file", "cross-attention width": "96"}


def test_directories(tiny_base):
    found = identify(tiny_base)
    assert found.kind == "sdxl" and found.facts["class"] == "StableDiffusionXLPipeline"
    assert found.facts["unet"].startswith("a UNet") and "96" in found.facts["unet"]
    assert found.facts["image_encoder"].startswith("a CLIP image tower")
    assert {"vae", "text_encoder", "text_encoder_2"} <= set(found.facts)
    assert identify(tiny_base / "vae").kind == "vae"
    parts = open_parts(tiny_base)
    assert set(parts) >= {"unet", "vae", "text_encoder", "text_encoder_2", "image_encoder"}
    for source in parts.values():
        source.close()


def test_the_shipped_networks():
    assert identify(ASSETS / "sdxl").kind == "sdxl"
    assert identify(ASSETS / "clip").kind == "clip"
    found = identify(ASSETS / "face_net")
    assert found.kind == "arcface" and found.facts["embedding dim"] == 128
    assert "Apache-2.0" in found.licence and "config.json" in found.licence


def test_a_folder_of_openclips(tmp_path):
    shapes = published_shapes((512, 1, 2048), (768, 1, 3072), 512, 32, 224)
    hollow(tmp_path / "open_clip_model.safetensors", shapes)
    found = identify(tmp_path)
    assert found.kind == "clip-original" and "MIT" in found.licence


def test_licences(tmp_path):
    def licence(shapes, metadata=None):
        return identify(hollow(tmp_path / "a.safetensors", shapes, metadata)).licence

    note = {"modelspec.license": "CreativeML Open RAIL++-M"}
    assert licence(lora(), note) == "CreativeML Open RAIL++-M (so says its modelspec.license)"
    assert licence(lora()) == "not stated in the file"
    assert "TencentARC's is Apache-2.0" in licence(V1)
    assert "non-commercial" in licence(ip_adapter(**FACEID))
    assert "Apache-2.0" in licence(ip_adapter(proj__weight=(8192, 1280)))
    (tmp_path / "README.md").write_text("---\ntags:\n- x\nlicense: cc-by-4.0\n---\n# Card\n")
    assert licence(lora()) == "cc-by-4.0 (so says README.md)"


def test_terms_are_read_from_the_file_that_is_loaded(tmp_path, capsys):
    note = {"modelspec.license": "MIT"}
    hollow(tmp_path / "a.safetensors", lora(), note)
    for path in (tmp_path, tmp_path / "a.safetensors"):
        say_terms("it", str(path), "controlnet")
        assert "MIT (so says its modelspec.license)" in capsys.readouterr().err


def test_what_cannot_be_read(tmp_path):
    with pytest.raises(MissingFile, match="gone"):
        identify(tmp_path / "gone.safetensors")
    (tmp_path / "a.txt").write_text("x")
    with pytest.raises(WeightsError, match="unknown kind of weight file"):
        identify(tmp_path / "a.txt")
    with pytest.raises(MissingFile, match="no weights"):
        identify(tmp_path)
