"""The model card of a published adapter: README.md with the front matter that the Hub reads."""

import dataclasses
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from tabulate import tabulate

from persongen_jax.settings import PLACES

# Places whose last part says what the adapter is for; of all others nothing is told.
NAMED_PLACES = ("base", "unet", "vae", "text_encoders", "id_encoder", "face_encoder")
# Values with a slash that are no paths: patterns of what is trained.
PATTERNS = ("trainable", "lora_targets", "lora_ranks")
SHOWN = (
    *("method", "steps", "batch_size", "size", "rank", "lora_alpha", "optimizer", "dtype"),
    *("quantize", "seed"),
)


@dataclasses.dataclass(frozen=True)
class Facts:
    """What the card says.

    Attributes:
        repo: "user/name"; file_format: one of exporting.FORMATS; weights: the exported file or
            folder's name; licence: the Hub's identifier; base_model: the base's name on the Hub,
            or "".
        prompt: one that calls up what was trained, or "".
        embedding: the file of a word that goes with the weights, or "".
        terms: licences of what the run read, by what it is.
        step, config: of the run; the config is public_config's.
        losses: the last line of metrics.jsonl; validation: rows of the validation at that step.
        sheets: names of the pictures that are uploaded as well.
    """

    repo: str
    file_format: str
    weights: str
    licence: str
    base_model: str
    prompt: str
    terms: Mapping[str, str]
    step: int
    config: Mapping[str, Any]
    losses: Mapping[str, Any]
    validation: Sequence[Mapping[str, Any]]
    sheets: Sequence[str] = ()
    embedding: str = ""


def public_config(config: Mapping[str, Any]) -> dict[str, Any]:
    """The config without paths of this machine: of a base's parts the names, of data nothing."""

    def public(key: str, value: Any) -> Any:
        if isinstance(value, Mapping):
            return {k: public(k, v) for k, v in value.items()}
        if key in PATTERNS:
            return value
        if isinstance(value, (list, tuple)):
            return [public(key, v) for v in value]
        if not isinstance(value, str) or not _may_be_a_path(key, value):
            return value
        return Path(value).name if key in NAMED_PLACES else ""

    return {key: public(key, value) for key, value in config.items()}


def _may_be_a_path(key: str, value: str) -> bool:
    named = key in PLACES or key.startswith("validate_") or key == "validation_gallery"
    return bool(value) and (named or any(mark in value for mark in ("/", "\\", "~")))


def paths_in(config: Mapping[str, Any]) -> set[str]:
    """The paths that a config names: none of them may be in what is published."""
    found = set()
    for key, value in config.items():
        if isinstance(value, Mapping):
            found |= paths_in(value)
        elif isinstance(value, str) and key not in PATTERNS and "/" in value:
            found.add(value)
    return found


def make_card(facts: Facts) -> str:
    """README.md: YAML front matter, what it is, figures, use, licences."""
    from huggingface_hub import ModelCardData

    tags = ["persongen_jax", "stable-diffusion-xl", "text-to-image", *_TAGS[facts.file_format]]
    data = ModelCardData(
        license=facts.licence,
        base_model=facts.base_model or None,
        library_name="diffusers",
        pipeline_tag="text-to-image",
        tags=tags,
        instance_prompt=facts.prompt or None,
    )
    name = facts.repo.partition("/")[2]
    parts = [f"---\n{data.to_yaml()}\n---\n\n# {name}\n"]
    method = facts.config.get("method", "")
    parts.append(
        f"Trained by persongen_jax, method `{method}`, {facts.step:,} steps, for "
        f"{facts.base_model or 'SDXL'}. The settings are in `training_config.json`.\n"
    )
    if facts.prompt:
        parts.append(f"The prompt that calls it up: `{facts.prompt}`\n")
    parts.append(_figures(facts))
    parts.append(f"## Use\n\n{_use(facts)}")
    parts += [f"![{sheet}]({sheet})\n" for sheet in facts.sheets]
    terms = [f"- {what}: {said}" for what, said in facts.terms.items()]
    parts.append("## Licences of what it was made with\n\n" + "\n".join(terms) + "\n")
    parts.append(
        "Generate pictures of a person only with that person's consent, and say that they are "
        "generated.\n"
    )
    return "\n".join(parts)


def _figures(facts: Facts) -> str:
    settings = [[key, json.dumps(facts.config[key])] for key in SHOWN if facts.config.get(key)]
    text = "## Training\n\n" + tabulate(settings, ["setting", "value"], tablefmt="github") + "\n"
    if "loss" in facts.losses:
        text += f"\nLoss at step {facts.losses.get('step')}: {facts.losses['loss']:.4g}\n"
    if facts.validation:
        heads = list(dict.fromkeys(key for row in facts.validation for key in row))
        heads = [h for h in heads if all(_short(row.get(h)) for row in facts.validation)]
        rows = [[row.get(head, "") for head in heads] for row in facts.validation]
        text += "\nValidation:\n\n" + tabulate(rows, heads, tablefmt="github") + "\n"
    return text


def _short(value: Any) -> bool:
    return value is None or isinstance(value, (int, float, str))


_TAGS = {
    "diffusers-lora": ["lora", "diffusers"],
    "kohya-lora": ["lora", "diffusers"],
    "photomaker": ["photomaker"],
    "ip-adapter": ["ip-adapter", "diffusers"],
    "instantid": ["instantid", "ip-adapter"],
    "pulid": ["pulid"],
    "controlnet": ["controlnet", "diffusers"],
    "diffusers": ["diffusers"],
    "embedding-kohya": ["textual_inversion"],
}

_OURS = {
    "diffusers-lora": "--lora {weights}",
    "kohya-lora": "--lora {weights}",
    "photomaker": "--method-weights {weights} --reference PICTURE",
    "ip-adapter": "--method-weights {weights} --reference PICTURE",
    "instantid": "--method-weights {weights} --method-controlnet DIR --image-encoder FACE_FILE "
    "--reference PICTURE",
    "pulid": "--method-weights {weights} --image-encoder FACE_FILE --clip EVA_FILE "
    "--reference PICTURE",
    "controlnet": "--controlnet {weights} --control-image PICTURE",
    "diffusers": "--base {weights}",
    "embedding-kohya": "--embedding {weights}",
}


# Released code for what diffusers does not read.
_THEIR_OWN = {
    "photomaker": "PhotoMaker's own pipeline (github.com/TencentARC/PhotoMaker)",
    "instantid": "InstantID's own pipeline (github.com/instantX-research/InstantID)",
    "pulid": "PuLID's own pipeline (github.com/ToTheBeginning/PuLID)",
}


# diffusers takes a tower's rows at a time.
_THEIR_WORD = """rows = load_file("{file}")  # of safetensors.torch
towers = (pipe.text_encoder, pipe.tokenizer), (pipe.text_encoder_2, pipe.tokenizer_2)
for key, (text_encoder, tokenizer) in zip(("clip_l", "clip_g"), towers):
    pipe.load_textual_inversion(rows[key], WORD, tokenizer, text_encoder)"""


def _use(facts: Facts) -> str:
    base = facts.base_model or "SDXL"
    repo, weights = facts.repo, facts.weights
    lora = f'pipe.load_lora_weights("{repo}", weight_name="{weights}")'
    theirs = {
        "diffusers-lora": lora,
        "kohya-lora": lora,
        "ip-adapter": f'pipe.load_ip_adapter("{repo}", subfolder="", weight_name="{weights}")',
        "controlnet": f'net = ControlNetModel.from_pretrained("{repo}", subfolder="{weights}")',
        "diffusers": f'pipe = StableDiffusionXLPipeline.from_pretrained("{weights}")  # downloaded',
        "embedding-kohya": _THEIR_WORD.format(file=weights),
    }.get(facts.file_format)
    if theirs and facts.embedding:
        theirs += "\n" + _THEIR_WORD.format(file=facts.embedding)
    text = ""
    if theirs:
        text += f'With diffusers, where `pipe` is an SDXL pipeline of "{base}":\n\n'
        text += f"```python\n{theirs}\n```\n\n"
    else:
        text += f"With {_THEIR_OWN[facts.file_format]}, or here.\n\n"
    prompt = facts.prompt or "PROMPT"
    ours = _OURS[facts.file_format].format(weights=weights)
    if facts.embedding:
        ours += f" --embedding {facts.embedding}"
    front = "" if facts.file_format == "diffusers" else "--base SDXL "
    text += "With persongen_jax:\n\n```bash\npython -m persongen_jax.generate "
    return text + f'{front}{ours} --prompt "{prompt}"\n```\n'
