"""DATASET_CARD.md: what the set is, how it came about, how to leave it, what may not be done."""

from typing import Any


def card(report: dict[str, Any]) -> str:
    """The card of report.py's report, Markdown."""
    without, settings = report["without_consent"], report["settings"]
    fetched = " to ".join(dict.fromkeys(time[:10] for time in report["fetched"])) or "unknown"
    sets = "\n".join(
        f"| {name} | {n['people']} | {n['pictures']} |" for name, n in report["sets"].items()
    )
    stages = "\n".join(
        f"| {s['stage']} | {s['in']} | {s['out']} | {_reasons(s['reasons'])} |"
        for s in report["stages"]
    )
    limits = {name: v for name, v in settings["filter"].items() if v not in (None, (), [])}
    filters = ", ".join(f"{name} {_plain(value)}" for name, value in limits.items())
    rule = settings["verify"]["rule"]
    networks = "\n".join(f"- {line}" for line in report["networks"]) or "- none"
    return f"""# {_plain(report["name"])}

{_plain(report["purpose"])}

## Contents

Photographs of people, a square crop of each with its face box, landmarks and captions.

| set | people | pictures |
|---|---|---|
{sets}

Fetched: {fetched}. Sources: {_reasons(report["sources"])}. \
Licences: {_reasons(report["licences"])}.
**Consent is not stated for {without["pictures"]} of {report["kept"]} pictures \
({without["share"]:.1%}).**

## How it was made

| stage | in | out | dropped |
|---|---|---|---|
{stages}

- Filters: {filters}.
- Verification: rule {rule}, {settings["verify"][rule]:g}; names merged from a cosine of \
{settings["verify"]["merge"]}.
- Split by person, after merging; seed {settings["split"]["seed"]}.
- Captions: {_reasons(report["captioner_revisions"])}; \
fallbacks: {sum(report["fallbacks"].values())}.

Networks and plug-ins, and what their publishers say:

{networks}

Every picture that was left out is in dropped.jsonl with the reason, the value and the threshold.

## Known bias

Who is in the set follows from who is on the list and has photographs on the network. Detectors,
recognisers and captioners err more often on some groups of people than on others, so their filters
drop people unevenly. Class words are a captioner's guess or come with the picture; they are
nobody's stated gender or age: {_reasons(report["class_words"])}.

## What may not be done

A face is biometric data. Do not use the set to recognise, track or judge people, to make pictures
of somebody without their consent, or to make sexual pictures of anybody. Do not pass it on without
this card.

## How to leave it

`python -m data_pipeline.collect.purge` removes a person by name, address, hash or picture from the
folders, shards, tars, measurements and embeddings, and keeps them out of later runs. Face
embeddings lie apart, in the work folder's measured/, and can be deleted without the rest.
"""


def _reasons(counts: dict[str, int]) -> str:
    return "; ".join(f"{_plain(name)} {n}" for name, n in counts.items()) or "none"


def _plain(value: Any) -> str:
    """Without what Markdown would read as a table or a tag."""
    text = " ".join(str(value).split())
    return text.replace("|", "/").replace("<", "(").replace(">", ")")
