"""The notes that generate keeps with each image: how it was made."""

import argparse
from collections.abc import Mapping, Sequence

from persongen_jax.diffusion.options import FLAGS, SamplingOptions
from persongen_jax.generate.base import KEPT
from persongen_jax.generate.control import SETTINGS

# Settings that say how many images there are, and not how each is made.
COUNTS = ("seed", "num_images_per_prompt", "batch_size")


def make_notes(
    args: argparse.Namespace,
    options: SamplingOptions,
    prompts: Sequence[str],
    parts: Mapping[str, Sequence[str]],
) -> list[dict]:
    """The notes on how each image was made; ``parts`` as given."""
    kept = (
        *KEPT,
        *"karras timestep_spacing dtype vae_dtype lora embedding method method_weights".split(),
    )
    kept += (
        "controlnet",
        "control_image",
        *SETTINGS,
        "image_encoder",
        "clip",
        "method_controlnet",
        "method_option",
        "style",
        "style_encoder",
        "style_image",
        "style_region",
        "scale",
        *(FLAGS[name] for name in FLAGS if name not in COUNTS),
    )
    settings = {name: getattr(args, name) for name in kept}
    settings |= {"reference": list(args.reference), "input": list(args.input)}
    if args.pose_net:
        settings["pose_net"] = args.pose_net
    if args.pose:
        settings |= {name: getattr(args, name) for name in ("pose", "pose_net", "pose_style")}
    if args.reference and args.start_merge_step is None:
        settings["start_merge_step"] = options.merge_step(args.steps)
    notes = []
    for i, prompt in enumerate(prompts):
        for number in range(args.images_per_prompt):
            note = {"prompt": prompt, "negative_prompt": args.negative_prompt or ""}
            note |= {name: texts[i] for name, texts in parts.items()}
            # The image is number ``index`` of this run's, and ``number`` of its prompt's; seed and
            # index draw its noise.
            note |= {"seed": args.seed, "index": len(notes), "number": number}
            note["settings"] = settings
            notes.append(note)
    return notes
