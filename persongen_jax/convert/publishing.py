"""Publishes what a run has learned on a Hub: the exported file, its settings and a model card.

Private unless asked otherwise, and without pictures. Nothing of this machine's paths is uploaded.
"""

import json
import os
import re
import tempfile
from collections.abc import Collection
from pathlib import Path
from typing import Any

from data_pipeline.text_files import read_lines
from persongen_jax.convert.exporting import export_run, unsupported_reason
from persongen_jax.convert.model_card import Facts, make_card, paths_in, public_config
from persongen_jax.systems.open import TrainedRun
from persongen_jax.weights.errors import WeightsError
from persongen_jax.weights.licences import licence
from persongen_jax.weights.saver import write_json

# Format -> name of what is uploaded. The first that a run can be written as is its default: what
# holds more of a method comes first.
FILES = {
    "ip-adapter": "ip-adapter.safetensors",
    "instantid": "ip-adapter.safetensors",
    "pulid": "pulid.safetensors",
    "controlnet": "controlnet",
    "photomaker": "photomaker.safetensors",
    "diffusers-lora": "pytorch_lora_weights.safetensors",
    "kohya-lora": "lora.safetensors",
    "diffusers": "model",
    "embedding-kohya": "embedding.safetensors",
}
WORD = "embedding-kohya"  # a word that was trained with a LoRA is a file of its own
PICTURES = (".png", ".jpg", ".jpeg", ".webp", ".gif", ".bmp", ".tif", ".tiff", ".heic", ".avif")
HEADER = 1 << 22  # bytes of a file that are searched for paths: texts, and headers of weights
REPO = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")


class PublishError(ValueError):
    """Nothing, or not all, could be published. The message says what to do."""


def collect(
    run: TrainedRun,
    folder: Path,
    *,
    repo: str,
    file_format: str = "",
    licence_id: str = "",
    base_model: str = "",
    prompt: str = "",
    images: bool = False,
) -> str:
    """Write all that is to be uploaded into ``folder``; return the model card.

    Args:
        run: systems.open.open_run's.
        repo: "user/name".
        file_format: one of ``FILES``; "": the one that holds most of the method.
        licence_id: the Hub's identifier; "": what the base's model card states.
        images: include the contact sheets of the validation at the run's step.

    Raises:
        WeightsError: the run cannot be written in this format.
        PublishError: no licence is known, or a file holds a path of this machine.
    """
    check_repo(repo)
    if not file_format:
        possible = [name for name in FILES if not unsupported_reason(run, name)]
        file_format = possible[0] if possible else "diffusers-lora"
    base, config = Path(run.config.base), json.loads(run.config.to_json())
    terms = {"base": licence(base, "sdxl")}
    licence_id = licence_id or _identifier(terms["base"])
    said = export_run(run, folder / FILES[file_format], file_format)
    word = file_format != WORD and not unsupported_reason(run, WORD)
    if word:
        said += f"; {export_run(run, folder / FILES[WORD], WORD)}"
    for what, kind in (("id_encoder", "clip"), ("face_encoder", "arcface")):
        if path := config.get(what):
            terms[what] = licence(path, kind)
    sheets = _sheets(run, folder) if images else []
    trigger = config.get("trigger_word", "") if file_format == "photomaker" else ""
    facts = Facts(
        repo=repo,
        file_format=file_format,
        weights=FILES[file_format],
        licence=licence_id,
        base_model=base_model,
        prompt=prompt or _prompt(config, trigger),
        embedding=FILES[WORD] if word else "",
        terms={**terms, "the adapter": said},
        step=run.step,
        config=public_config(config),
        losses=_last_row(run.workdir / "metrics.jsonl", run.step),
        validation=_rows(run.workdir / "validation" / "metrics.jsonl", run.step),
        sheets=sheets,
    )
    card = make_card(facts)
    write_json(folder / "training_config.json", dict(facts.config))
    (folder / "README.md").write_text(card, encoding="utf-8")
    check_private(folder, {*paths_in(config), str(run.workdir.absolute())}, sheets)
    return card


def _prompt(config: dict, trigger: str) -> str:
    """A prompt that calls up what was trained; "" if the config does not say."""
    if token := config.get("token"):
        learned = config["method"] in ("textual_inversion", "pivotal_tuning")  # for the class too
        return config.get("instance_prompt") or f"a photo of {token}{'' if learned else ' person'}"
    return f"a person {trigger}" if trigger else ""


def check_repo(repo: str) -> None:
    """PublishError unless it is "user/name"."""
    if not REPO.fullmatch(repo):
        raise PublishError(f"--repo {repo}: write it as user/name, in letters, digits, - _ and .")


def check_private(folder: Path, paths: Collection[str], pictures: Collection[str] = ()) -> None:
    """PublishError if a file is a picture that was not asked for, or names one of ``paths``.

    Args:
        paths: of this machine; short relative ones are not searched for.
        pictures: names of those that may be there.
    """
    private = {path for path in (*paths, str(Path.home())) if len(path) > 3}
    for file in files_of(folder):
        name = file.relative_to(folder).as_posix()
        if file.suffix.lower() in PICTURES and name not in pictures:
            raise PublishError(f"{name}: is a picture, and none was asked for; give --images")
        with open(file, "rb") as opened:
            start = opened.read(HEADER)
        for path in private:
            if path.encode() in start or json.dumps(path)[1:-1].encode() in start:
                raise PublishError(
                    f"{name}: names the path {path} of this machine; move what is there to a "
                    "neutral place and train or export again, or publish in another format"
                )


def files_of(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.is_file())


def _identifier(said: str) -> str:
    stated = re.fullmatch(r"(\S+) \(so says README\.md\)", said)
    if not stated:
        raise PublishError(
            f"the licence of the base is {said}: give --license, one of the Hub's identifiers, "
            "such as openrail++ for SDXL 1.0"
        )
    return stated[1]


def _sheets(run, folder: Path) -> list[str]:
    found = sorted((run.workdir / "validation").glob(f"step_{run.step:06d}_*.png"))
    if not found:
        raise PublishError(
            f"--images: {run.workdir} has no validation sheet of step {run.step}; leave it out, or "
            "give --step of a validated one"
        )
    for sheet in found:
        (folder / sheet.name).write_bytes(sheet.read_bytes())
    return [sheet.name for sheet in found]


def _rows(file: Path, step: int) -> list[dict[str, Any]]:
    lines = read_lines(file) if file.is_file() else []
    return [row for line in lines if (row := json.loads(line)).get("step") == step]


def _last_row(file: Path, step: int) -> dict[str, Any]:
    lines = read_lines(file) if file.is_file() else []
    rows = [row for line in lines if (row := json.loads(line)).get("step", 0) <= step]
    return rows[-1] if rows else {}


# ---- The Hub -----------------------------------------------------------------------------------


def read_token(file: Path | None) -> str:
    """The token of ``file`` or of HF_TOKEN; it is never printed."""
    token = file.read_text().strip() if file else os.environ.get("HF_TOKEN", "").strip()
    if not token:
        place = f"{file} is empty" if file else "HF_TOKEN is not set"
        raise PublishError(f"no token for the Hub: {place}; set HF_TOKEN or give --token-file")
    return token


def upload(folder: Path, repo: str, token: str, *, public: bool = False) -> str:
    """Create the repository and commit the folder's files; return its address.

    The Hub is at ``$HF_ENDPOINT``, by default huggingface.co.

    Raises:
        PublishError: one sentence; never with the token.
    """
    from huggingface_hub import CommitOperationAdd, HfApi

    api = HfApi(endpoint=os.environ.get("HF_ENDPOINT") or None, token=token)
    added = [
        CommitOperationAdd(path.relative_to(folder).as_posix(), path) for path in files_of(folder)
    ]
    created = False
    try:
        # An existing one may be public, and what is in it would be replaced: never into one.
        address = api.create_repo(repo, private=not public, exist_ok=False)
        created = True
        api.create_commit(repo, added, commit_message="Adapter, settings and model card")
    except Exception as error:  # the library's kinds of network errors vary with its version
        reason = _reason(error, repo, api.endpoint)
        if reason is None:
            raise
        left = f"; the repository {repo} is there and empty: delete it first" if created else ""
        raise PublishError(reason + left) from None
    return str(address)


def _reason(error: Exception, repo: str, endpoint: str) -> str | None:
    status = getattr(getattr(error, "response", None), "status_code", None)
    if status == 401:
        return f"{endpoint} does not accept the token: make one with write access to {repo}"
    if status == 403:
        return f"the token may not write to {repo}: give it write access, or another --repo"
    if status == 409:
        return f"{repo} exists already on {endpoint}: give another --repo, or delete it there"
    if status is not None:
        return f"{endpoint} answered with status {status} for {repo}: try again later"
    library = type(error).__module__.partition(".")[0]
    if isinstance(error, OSError) or library.startswith(("httpx", "httpcore", "requests")):
        return f"{endpoint} cannot be reached: check the network and HF_ENDPOINT"
    if isinstance(error, ValueError):  # of the card's front matter, among others
        return f"{endpoint} refuses {repo}: {' '.join(str(error).split())[:300]}"
    return None


def publish(
    run: TrainedRun, repo: str, *, token: str, public: bool, dry_run: bool, **options: Any
) -> str:
    """Collect and upload; returns what to print. In a dry run the files and the card."""
    with tempfile.TemporaryDirectory(prefix="persongen-jax-") as name:
        folder = Path(name)
        try:
            card = collect(run, folder, repo=repo, **options)
        except WeightsError as error:
            # What would be written lies in a folder that nobody knows.
            raise WeightsError(str(error).replace(f"{folder}/", "")) from None
        listed = "\n".join(
            f"  {path.relative_to(folder).as_posix()}  {path.stat().st_size:,} bytes"
            for path in files_of(folder)
        )
        if dry_run:
            kind = "public" if public else "private"
            return f"would be published as {repo}, {kind}:\n{listed}\n\n{card}"
        return f"published: {upload(folder, repo, token, public=public)}\n{listed}"
