"""InstantID against the six runs of its authors' own pipeline (tests/goldens/published).

Its files are written in the published layout and loaded by ``load_method``; then the pipeline's own
call runs. Prompt embeddings, which the original was given instead of texts, enter by the field of
prompts; the face vector as a Face, the picture of points and the first noise as they are.
"""

import numpy as np
import pytest

from data_pipeline.examples.conditions import Text
from data_pipeline.faces.face import Face
from persongen_jax.pipeline import Pipeline
from persongen_jax.weights.saver import write_json
from tests.helpers.identity_nets import write_recogniser
from tests.helpers.made_once import made_once
from tests.helpers.published_goldens import golden, relative_gap, weights, write_base, write_weights

NAME = "instantid_pipeline"
CONFIG, ARRAYS = golden(NAME)
PROMPT, NEGATIVE = "the prompt", "the negative prompt"


class GivenText(Text):
    """Prompts whose embeddings are known."""

    def given(self, call):
        rows = {PROMPT: ("prompt_embeds", "pooled")}
        rows |= {NEGATIVE: ("negative_prompt_embeds", "negative_pooled")}
        both = zip(*(rows[prompt] for prompt in call.prompts), strict=True)
        states, pooled = (np.concatenate([ARRAYS[f"in/{n}"] for n in names]) for names in both)
        return {"text_states/text": states, "text_states/pooled": pooled}


def write_files(folder):
    """The base, both files of InstantID, and a recogniser whose embeddings are as long."""
    write_base(folder / "base")
    # Their heads are 8 wide, where InstantID's have 64, which no tensor shows.
    from persongen_jax.weights.files.safetensors_file import write_safetensors

    tensors = weights(NAME, "ip_adapter_bin")
    entries = [(k, v.shape, v.dtype, lambda v=v: v) for k, v in tensors.items()]
    notes = {"format": "pt", "head_dim": str(CONFIG["resampler"]["dim_head"])}
    write_safetensors(folder / "ip-adapter.safetensors", entries, notes)
    net = folder / "ControlNetModel"
    write_weights(net / "diffusion_pytorch_model.safetensors", weights(NAME, "controlnet"))
    write_json(net / "config.json", {"_class_name": "ControlNetModel", **CONFIG["controlnet"]})
    write_recogniser(folder / "recogniser", CONFIG["resampler"]["embedding_dim"])


def load(folder, several="mean"):
    pipe = Pipeline.from_pretrained(folder / "base")
    pipe.load_method(
        "instantid",
        folder / "ip-adapter.safetensors",
        controlnet=folder / "ControlNetModel",
        encoder=folder / "recogniser" / "model.safetensors",
        options={"instantid_references": several},
    )
    text = GivenText(pipe.base.tokenizers, at_trigger=False)
    fields = [text if field.name == "text" else field for field in pipe.fields]
    pipe._set_method(pipe.method, fields)
    return pipe


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    return made_once(tmp_path_factory, "instantid", write_files)


@pytest.fixture(scope="module")
def pipe(files):
    return load(files)


def call(pipe, run, faces=("face_embedding",), **changes):
    guidance, identity, points, *window = CONFIG["runs"][run]
    if window:
        points = [(0, window[0], 0), (*window, points), (window[1], 1, 0)]
    references = [[Face(embedding=row) for row in ARRAYS[f"in/{faces[0]}"].reshape(-1, 64)]]
    settings = {
        "references": references,
        "face_points": [ARRAYS["in/kps_image"]],
        "scales": {"identity": identity, "face_points": points},
        "guidance_scale": guidance,
        "num_inference_steps": CONFIG["steps"],
        "num_images_per_prompt": CONFIG["images_per_prompt"],
        "height": CONFIG["height"],
        "width": CONFIG["width"],
        "latents": ARRAYS["in/latents"].transpose(0, 2, 3, 1),
        "output_type": "latent",
    }
    negative = NEGATIVE if guidance > 1 else None
    found = pipe(PROMPT, negative, **{**settings, **changes}).images
    return found.transpose(0, 3, 1, 2)


def wanted(run):
    return ARRAYS[f"out/{run}_latents_per_step"][-1]


@pytest.mark.slow
def test_the_main_run(pipe):
    assert relative_gap(call(pipe, "main"), wanted("main")) < 1e-4


@pytest.mark.slow
@pytest.mark.parametrize("run", ["ip_only", "control_only", "no_guidance", "window"])
def test_the_other_runs(run, pipe):
    assert relative_gap(call(pipe, run), wanted(run)) < 1e-4


@pytest.mark.slow
def test_three_faces_as_a_sequence(files):
    found = call(load(files, "sequence"), "three_faces", ["face_embeddings_three"])
    assert relative_gap(found, wanted("three_faces")) < 1e-4
