"""Qwen2.5-VL (arXiv 2502.13923) by transformers, on whatever device torch has."""

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from PIL import Image

from data_pipeline.collect.captions.base import View
from data_pipeline.collect.captions.contract import PROMPT
from data_pipeline.collect.settings import Caption, SettingsError
from data_pipeline.text_files import read_json

KIND = "qwen2_5_vl"
PLACE = "<|image_pad|>"
INSTALL = "pip install 'persongen_jax[caption]'"


class Qwen:
    """The model of a local folder in transformers' format; nothing is downloaded.

    Raises:
        SettingsError: no such folder, or another model.
        ImportError: torch or transformers is missing.
    """

    name = "Qwen2.5-VL"
    prompt = PROMPT

    def __init__(self, folder: str, settings: Caption):
        path = Path(folder) / "config.json"
        kind = read_json(path).get("model_type") if path.is_file() else "no config.json there"
        if kind != KIND:
            raise SettingsError(
                f"caption.captioner=qwen:{folder}: {kind}, not {KIND}; give the folder of "
                "Qwen2.5-VL's weights as transformers saves them"
            )
        try:
            import torch
            from transformers import AutoImageProcessor, AutoModelForImageTextToText, AutoTokenizer
        except ImportError as error:
            raise ImportError(f"captions by Qwen2.5-VL need torch: {INSTALL}") from error
        self._torch, self._settings = torch, settings
        device = "cuda" if torch.cuda.is_available() else "cpu"
        dtype = torch.bfloat16 if device == "cuda" else torch.float32
        local: dict[str, Any] = {"local_files_only": True}
        # Pillow's: the public processor as a whole needs torchvision, for videos.
        self._images: Any = AutoImageProcessor.from_pretrained(folder, backend="pil", **local)
        self._tokenizer: Any = AutoTokenizer.from_pretrained(folder, padding_side="left", **local)
        model: Any = AutoModelForImageTextToText.from_pretrained(folder, dtype=dtype, **local)
        self._model = model.to(device).eval()
        self.revision = settings.revision or _revision(Path(folder), model.config)

    def ask(self, views: Sequence[View], seed: int) -> list[str]:
        """The answers; seed 0 decodes greedily, another one samples."""
        inputs = self._inputs(views)
        torch = self._torch
        drawn = {"do_sample": True, "temperature": 0.7, "top_p": 0.9} if seed else {}
        with torch.inference_mode(), torch.random.fork_rng():
            torch.manual_seed(_seed(views[0].key, seed))
            answers = self._model.generate(
                **inputs,
                max_new_tokens=self._settings.max_new_tokens,
                **({"do_sample": False, "temperature": None, "top_p": None, "top_k": None} | drawn),
            )
        own = answers[:, inputs["input_ids"].shape[1] :]
        return self._tokenizer.batch_decode(own, skip_special_tokens=True)

    def _inputs(self, views: Sequence[View]) -> Any:
        """What the model reads: pictures in patches, and the prompt with a place for each patch."""
        size = {
            "shortest_edge": self._settings.min_pixels,  # these two are areas
            "longest_edge": self._settings.max_pixels,
        }
        pictures = [Image.fromarray(view.image) for view in views]
        inputs = dict(self._images(images=pictures, size=size, return_tensors="pt"))
        places = inputs["image_grid_thw"].prod(-1) // self._images.merge_size**2
        content = [{"type": "image"}, {"type": "text", "text": PROMPT}]
        chat = [{"role": "user", "content": content}]
        text = self._tokenizer.apply_chat_template(chat, tokenize=False, add_generation_prompt=True)
        texts = [text.replace(PLACE, PLACE * int(n)) for n in places]
        inputs |= self._tokenizer(texts, padding=True, return_tensors="pt")
        is_picture = inputs["input_ids"] == self._model.config.image_token_id
        inputs["mm_token_type_ids"] = is_picture.int()
        return {name: tensor.to(self._model.device) for name, tensor in inputs.items()}


def _seed(key: str, seed: int) -> int:
    return int(hashlib.sha256(f"{key} {seed}".encode()).hexdigest()[:8], 16)


def _revision(folder: Path, config: Any) -> str:
    """The commit that the hub's cache says, else a digest of the config and the weights' sizes."""
    commit = getattr(config, "_commit_hash", None)
    if commit:
        return str(commit)
    marks = hashlib.sha256((folder / "config.json").read_bytes())
    for file in sorted(folder.glob("*.safetensors")):
        marks.update(f"{file.name} {file.stat().st_size}".encode())
    return f"files {marks.hexdigest()[:12]}"
