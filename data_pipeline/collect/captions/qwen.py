"""Qwen2.5-VL (arXiv 2502.13923) by transformers, on whatever device torch has."""

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from PIL import Image

from data_pipeline.collect.captions.base import View
from data_pipeline.collect.captions.contract import PROMPT
from data_pipeline.collect.settings import Caption, SettingsError

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
        if not (Path(folder) / "config.json").is_file():
            raise SettingsError(
                f"caption.captioner=qwen:{folder}: no config.json there; give the folder of "
                "Qwen2.5-VL's weights as transformers saves them"
            )
        try:
            import torch
            from transformers import AutoModelForImageTextToText, AutoProcessor
        except ImportError as error:
            raise ImportError(f"captions by Qwen2.5-VL need torch: {INSTALL}") from error
        self._torch, self._settings = torch, settings
        device = "cuda" if torch.cuda.is_available() else "cpu"
        # In float32 a CPU gives the same answer whatever else is in the batch, or nearly so.
        dtype = torch.bfloat16 if device == "cuda" else torch.float32
        self._processor = AutoProcessor.from_pretrained(folder, local_files_only=True)
        self._processor.tokenizer.padding_side = "left"
        self._model: Any = AutoModelForImageTextToText.from_pretrained(
            folder, dtype=dtype, local_files_only=True
        )
        if self._model.config.model_type != "qwen2_5_vl":
            raise SettingsError(
                f"caption.captioner=qwen:{folder}: {self._model.config.model_type}, not qwen2_5_vl"
            )
        self._model.to(device).eval()
        self.revision = settings.revision or _revision(Path(folder), self._model.config)

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
        return self._processor.batch_decode(own, skip_special_tokens=True)

    def _inputs(self, views: Sequence[View]) -> Any:
        chats = [
            [
                {
                    "role": "user",
                    "content": [
                        {"type": "image", "image": Image.fromarray(view.image)},
                        {"type": "text", "text": PROMPT},
                    ],
                }
            ]
            for view in views
        ]
        size = {
            "shortest_edge": self._settings.min_pixels,  # these two are areas
            "longest_edge": self._settings.max_pixels,
        }
        inputs = self._processor.apply_chat_template(
            chats,
            add_generation_prompt=True,
            tokenize=True,
            return_dict=True,
            return_tensors="pt",
            processor_kwargs={"padding": True, "size": size},
        )
        return inputs.to(self._model.device)


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
