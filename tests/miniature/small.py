"""The miniature's networks and trainings, small enough for tests."""

from flax import nnx

from persongen_jax.miniature import configs, sizes
from persongen_jax.miniature.systems import face_parts
from persongen_jax.models.encoders.clip import CLIPTextModel

STEPS = 8


def small_towers():
    towers = []
    for i in (0, 1):
        config = {**sizes.text_config(i, 22), "num_hidden_layers": 2}
        tower = CLIPTextModel(config, rngs=nnx.Rngs(i))
        table = tower.embeddings.token_embedding.embedding
        table.set_value(table.get_value() * 300)  # as large as after training
        towers.append(tower)
    return tuple(towers)


def small_unet_config(towers):
    config = {**sizes.unet_config(), "block_out_channels": [16, 32], "sample_size": 4}
    config["cross_attention_dim"] = sum(t.config["hidden_size"] for t in towers)
    return {**config, "attention_head_dim": [1, 1]}


def shrink_networks(monkeypatch):
    """Networks of the same kinds that compile in seconds."""
    vae, unet = sizes.vae_config(), sizes.unet_config()
    vae |= {"block_out_channels": [8], "down_block_types": vae["down_block_types"][:1]}
    vae["up_block_types"] = vae["up_block_types"][:1]
    unet |= {
        "block_out_channels": [16, 32],
        "attention_head_dim": [1, 1],
        "down_block_types": ["DownBlock2D", "CrossAttnDownBlock2D"],
        "up_block_types": ["CrossAttnUpBlock2D", "UpBlock2D"],
        "transformer_layers_per_block": [1, 1],
        "cross_attention_dim": 64,
        "sample_size": sizes.SIDE,
    }
    vision = {"hidden_size": 32, "num_hidden_layers": 1, "patch_size": 16}
    face_net = {"layers": (1,), "widths": (8,), "embedding_dim": 16}
    monkeypatch.setattr(sizes, "vae_config", lambda: dict(vae))
    monkeypatch.setattr(sizes, "unet_config", lambda: dict(unet))
    monkeypatch.setattr(sizes, "TEXT_WIDTHS", (32, 32))
    monkeypatch.setattr(sizes, "TEXT_LAYERS", 1)
    monkeypatch.setattr(sizes, "VISION", {**sizes.VISION, **vision})
    monkeypatch.setattr(sizes, "FACE_NET", {**sizes.FACE_NET, **face_net})
    monkeypatch.setattr(sizes, "KEYPOINT_NET", {**sizes.KEYPOINT_NET, "widths": (8, 8)})
    monkeypatch.setattr(sizes, "VISION_JUDGE", {**sizes.VISION_JUDGE, **vision})
    monkeypatch.setattr(sizes, "TEXT_JUDGE_LAYERS", 1)
    monkeypatch.setattr(sizes, "FACE_JUDGE", {**sizes.FACE_JUDGE, **face_net})
    monkeypatch.setattr(sizes, "KEYPOINT_JUDGE", {**sizes.KEYPOINT_JUDGE, "widths": (8, 8)})
    parts = {"layers": (1,), "widths": (8,)}
    monkeypatch.setattr(sizes, "PARTS_JUDGE", {**sizes.PARTS_JUDGE, **parts})
    monkeypatch.setattr(face_parts, "FACES", 40)


def small_config(stage, work):
    """A stage's own config, for STEPS steps."""
    config = configs.get_config(stage, work)
    config.steps, config.batch_size, config.warmup_steps = STEPS, 6, 1
    config.log_every, config.checkpoint_every = 1, STEPS // 2
    if stage != "keypoint_net":  # one is enough; Muon takes long to compile
        config.optimizer, config.optimizer_options = "adam", {}
    return config
