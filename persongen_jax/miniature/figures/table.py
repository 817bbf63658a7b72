"""Figures and sizes as tables in Markdown, between two marks of a text."""

from pathlib import Path

from data_pipeline.files import atomic_write
from persongen_jax.miniature.figures.generated import GUIDANCE
from persongen_jax.tables import markdown

TITLES = {
    "vae_psnr_db": "VAE, PSNR of whole pictures (dB)",
    "vae_face_psnr_db": "VAE, PSNR inside the face box (dB)",
    "face_net_rank1_of_100": "face net: rank-1 among 100, one picture each",
    "face_net_rank1_of_100_by_keypoint_net": "the same, faces aligned by the keypoint judge",
    "face_net_rank1_of_10_look_alikes": "the same among 10 look-alikes",
    "face_judge_rank1_of_100": "face judge: rank-1 among 100",
    "face_judge_rank1_of_100_by_keypoint_net": "the same, faces aligned by the keypoint judge",
    "face_judge_rank1_of_10_look_alikes": "the same among 10 look-alikes",
    "landmark_error": "keypoint net: landmarks, mean error (sides of the frame)",
    "keypoint_error": "keypoint net: visible joints, mean error (sides)",
    "faces_found": "keypoint net: faces found",
    "judge_landmark_error": "keypoint judge: landmarks, mean error (sides)",
    "judge_keypoint_error": "keypoint judge: visible joints, mean error (sides)",
    "judge_faces_found": "keypoint judge: faces found",
    "clip_right_of_32_captions": "CLIP: the right one of 32 captions",
    "clip_judge_right_of_32_captions": "CLIP judge: the right one of 32 captions",
    "clip_rank1_of_100": "CLIP's image features: rank-1 among 100",
    "parts_judge_right_on_whole_parts": "parts judge: right about parts without a fault",
    "parts_judge_right_on_faulty_parts": "parts judge: right about missing, smeared or moved ones",
    "clip_judge_scene": "CLIP judge: scenes of drawn pictures",
    "clip_judge_clothes_colour": "CLIP judge: colours of clothes of drawn pictures",
    "clip_judge_clothes": "CLIP judge: kinds of clothes of drawn pictures",
    "clip_judge_expression": "CLIP judge: expressions of drawn pictures",
    "base_scene": f"base, guidance {GUIDANCE:g}: the scene named is the one drawn",
    "base_clothes_colour": "base: the clothes' colour",
    "base_clothes": "base: the clothes' kind",
    "base_expression": "base: the expression",
    "base_eyes": "base: both eyes there and in place",
    "base_brows": "base: both brows",
    "base_mouth": "base: the mouth",
    "photomaker_rank1_of_10": "`photomaker`, shipped, on strangers: rank-1 among ten",
    "photomaker_rank1_of_100": "the same among 100",
    "photomaker_rank1_of_10_look_alikes": "the same among ten look-alikes",
    "photomaker_cosine_true": "its cosine to the true person",
    "photomaker_cosine_others": "its cosine to others",
    "photomaker_faces_found": "its faces found",
    "photomaker_scene": "its scenes right",
}


def insert(path: Path, name: str, table: str) -> None:
    """Replace what stands between ``<!-- name -->`` and ``<!-- /name -->`` in the text ``path``.

    Raises:
        ValueError: the text lacks the marks.
    """
    text, begin, end = path.read_text(encoding="utf-8"), f"<!-- {name} -->", f"<!-- /{name} -->"
    before, found, rest = text.partition(begin)
    _, ended, after = rest.partition(end)
    if not (found and ended):
        raise ValueError(f"{path}: put {begin} and {end} where the table belongs")
    with atomic_write(path) as partial:
        partial.write_text(f"{before}{begin}\n\n{table}\n\n{end}{after}", encoding="utf-8")


def sizes(assets: Path) -> str:
    """A row per network: its folder or file, and megabytes."""
    files = [path for path in assets.rglob("*.safetensors") if path.is_file()]
    megabytes: dict[str, float] = {}
    for path in sorted(files):
        place = path if path.parent == assets else path.parent
        name = str(place.relative_to(assets))
        megabytes[name] = megabytes.get(name, 0.0) + path.stat().st_size / 1e6
    everything = sum(path.stat().st_size for path in assets.rglob("*") if path.is_file()) / 1e6
    rows = [[name, f"{size:.1f}"] for name, size in megabytes.items()]
    return markdown(["network", "MB"], [*rows, ["all files, with pictures", f"{everything:.1f}"]])


def table(figures: dict) -> str:
    """A row per figure, in the order of TITLES."""
    head = ["what", "measured", "95 % interval", "bar", "aim", "judge", "samples"]
    rows = [_row(title, figures[name]) for name, title in TITLES.items() if name in figures]
    return markdown(head, rows)


def _row(title: str, figure: dict) -> list:
    value = f"{figure['value']:g}"
    if "drawn" in figure:
        value += f" ({figure['generated']:g} of {figure['drawn']:g} on drawn ones)"
    bar = f"{figure['bar']:g} {'met' if figure['met'] else '**missed**'}" if "bar" in figure else ""
    low, high = figure["interval"]
    aim = f"{figure['aim']:g}" if "aim" in figure else ""
    return [
        title,
        value,
        f"{low:g} to {high:g}",
        bar,
        aim,
        figure.get("judge", ""),
        figure["samples"],
    ]
