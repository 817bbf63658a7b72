"""The page of shuffled pairs: one self-contained file that sends nothing anywhere.

It asks for the rater's name, shows a pair at a time next to the person's reference and the prompt,
keeps the answers in the browser, so that a rater can go on later, and saves them as a file.
"""

import json
from html import escape

import numpy as np

from data_pipeline.pictures.reading import load_image
from persongen_jax.evaluation.rating.answers import QUESTIONS
from persongen_jax.evaluation.rating.pairs import RatedPair
from persongen_jax.evaluation.reports.page import thumbnail

SIDE, REFERENCE = 512, 192  # pixels of an image's longer side, and of a reference's
VERBS = {"likeness": "is "}
STYLE = """
body { font: 16px/1.4 system-ui, sans-serif; margin: 1rem auto; max-width: 72rem; padding: 0 1rem }
.images { display: flex; gap: 1rem; justify-content: center }
.images img { width: 48%; max-height: 60vh; object-fit: contain; background: #eee }
#reference { height: 140px; object-fit: contain; vertical-align: top; margin-right: 1rem }
.question { display: flex; gap: .6rem; align-items: center; justify-content: center; margin: .5rem }
.question span { width: 24rem; text-align: right }
button { font: inherit; padding: .4rem 1rem; cursor: pointer }
button.chosen { background: #1a5fb4; color: #fff }
nav { display: flex; gap: 1rem; justify-content: center; margin: 1rem }
"""
SCRIPT = """
const stored = "rating-" + DATA.page;
let state = JSON.parse(localStorage.getItem(stored) || '{"rater": "", "answers": {}, "at": 0}');
// Two people of one name, or without any, are still two.
state.id ||= Date.now().toString(36) + Math.random().toString(36).slice(2);
const $ = (id) => document.getElementById(id);
const done = (pair) => DATA.questions.every(([q]) => (q !== "likeness" || pair.reference !== null)
  && (q !== "prompt" || pair.text) ? (state.answers[pair.name] || {})[q] : true);
function keep() { localStorage.setItem(stored, JSON.stringify(state)); }
function show() {
  const pair = DATA.pairs[state.at], given = state.answers[pair.name] || {};
  $("left").src = pair.left; $("right").src = pair.right;
  $("reference").hidden = pair.reference === null;
  if (pair.reference !== null) $("reference").src = DATA.references[pair.reference];
  $("text").textContent = pair.text;
  $("count").textContent = `${state.at + 1} of ${DATA.pairs.length}, `
    + `${DATA.pairs.filter(done).length} answered`;
  $("questions").replaceChildren(...DATA.questions.filter(([q]) =>
    q === "likeness" ? pair.reference !== null : pair.text).map(([q, asked]) => {
    const row = document.createElement("div"); row.className = "question";
    const label = document.createElement("span"); label.textContent = asked; row.append(label);
    for (const choice of ["left", "same", "right"]) {
      const button = document.createElement("button");
      button.textContent = choice === "same" ? "no difference" : choice;
      button.className = given[q] === choice ? "chosen" : "";
      button.onclick = () => {
        state.answers[pair.name] = {...given, [q]: choice}; keep();
        if (done(pair) && state.at < DATA.pairs.length - 1) state.at += 1;
        keep(); show();
      };
      row.append(button);
    }
    return row;
  }));
}
function move(by) {
  state.at = Math.min(Math.max(state.at + by, 0), DATA.pairs.length - 1); keep(); show();
}
function save() {
  const answers = {page: DATA.page, id: state.id, rater: state.rater, answers: state.answers};
  const link = document.createElement("a");
  link.href = URL.createObjectURL(new Blob([JSON.stringify(answers, null, 1)]));
  link.download = `answers_${state.rater || "rater"}.json`; link.click();
}
$("rater").value = state.rater;
$("rater").oninput = () => { state.rater = $("rater").value; keep(); };
$("back").onclick = () => move(-1); $("next").onclick = () => move(1); $("save").onclick = save;
show();
"""
BODY = """
<p><label>Your name: <input id="rater"></label> <span id="count"></span></p>
<p><img id="reference" alt="the person"> <span id="text"></span></p>
<div class="images"><img id="left" alt="left"><img id="right" alt="right"></div>
<div id="questions"></div>
<nav><button id="back">back</button><button id="next">next</button>
<button id="save">save my answers</button></nav>
"""


def rating_page(name: str, pairs: list[RatedPair], references: dict[str, np.ndarray]) -> str:
    """The HTML text.

    Args:
        name: of the page, which answers repeat.
        references: a picture of each person, uint8 [h, w, 3]; the others are not asked about.
    """
    shown = {}
    rows = []
    for pair in pairs:
        person = pair.entry.person
        if person in references and person not in shown:
            shown[person] = thumbnail(references[person], REFERENCE)
        images = [thumbnail(load_image(str(file)), SIDE) for file in (pair.first, pair.second)]
        left, right = images if pair.first_is_left else images[::-1]
        numbered = list(shown).index(person) if person in shown else None
        row = {"name": pair.name, "left": left, "right": right, "reference": numbered}
        rows.append({**row, "text": pair.entry.text})
    asked = [[key, f"Which {VERBS.get(key, '')}{text}?"] for key, text in QUESTIONS.items()]
    data = {"page": name, "pairs": rows, "references": list(shown.values()), "questions": asked}
    # In a script, "</" would end it.
    text = json.dumps(data).replace("</", "<\\/")
    head = f'<meta charset="utf-8"><title>{escape(name)}</title><style>{STYLE}</style>'
    script = f"<script>const DATA = {text};{SCRIPT}</script>"
    return (
        f'<!DOCTYPE html>\n<html lang="en"><head>{head}</head><body>{BODY}{script}</body></html>\n'
    )
