"""Means with their sample counts and intervals over people; what of faces is measured by them.

A **measure** is a dict that JSON can hold:

    {"mean": 0.31, "low": 0.27, "high": 0.36, "n": 200, "people": {"anna": [0.33, 20], ...}}

``low`` and ``high`` bound the mean by a 95 % bootstrap over people (None for fewer than two),
``people`` has each one's own mean and count, so that several runs can be joined later. A measure of
nothing has mean None and n 0.
"""

import numpy as np

from persongen_jax.metrics.face_similarity import bootstrap_interval, cosine

FEW = 10  # people of the smaller gallery
CONFIDENCE = 0.95
SAMPLES, SEED = 2000, 0


def measure(values, people) -> dict:
    """The mean of ``values`` [n]; ``people`` [n] says whose image each is."""
    values, people = np.asarray(values, np.float64), np.asarray(people, str)
    if not len(values):
        return {"mean": None, "low": None, "high": None, "n": 0, "people": {}}
    names = sorted(set(people.tolist()))
    low, high = (None, None)
    if len(names) > 1:
        low, high = bootstrap_interval(values, people, confidence=CONFIDENCE, samples=SAMPLES)
    own = {name: values[people == name] for name in names}
    return {
        "mean": float(values.mean()),
        "low": low,
        "high": high,
        "n": len(values),
        "people": {name: [float(v.mean()), len(v)] for name, v in own.items()},
    }


def join_runs(measures: list[dict]) -> dict:
    """One measure of several runs that differ by their seed.

    The interval is over both: every resample draws runs and, apart from them, people (the
    pigeonhole bootstrap of Owen, arXiv 0711.1955, which errs on the wide side). "people" is left
    out; "runs" is the number of runs with a value.
    """
    measures = [m for m in measures if m["n"]]
    if not measures:
        return {"mean": None, "low": None, "high": None, "n": 0, "runs": 0}
    names = sorted(set().union(*(m["people"] for m in measures)))
    cells = np.array([[m["people"].get(name, (0.0, 0)) for name in names] for m in measures])
    counts = cells[..., 1]
    sums = cells[..., 0] * counts
    runs, people = counts.shape
    low, high = None, None
    if people > 1 or runs > 1:
        rng = np.random.default_rng(SEED)
        of_runs = rng.multinomial(runs, np.full(runs, 1 / runs), SAMPLES)
        of_people = rng.multinomial(people, np.full(people, 1 / people), SAMPLES)
        total = np.einsum("br,rp,bp->b", of_runs, sums, of_people)
        count = np.einsum("br,rp,bp->b", of_runs, counts, of_people)
        means = total[count > 0] / count[count > 0]
        tail = (1 - CONFIDENCE) / 2
        low, high = (float(q) for q in np.quantile(means, [tail, 1 - tail]))
    mean = float(sums.sum() / counts.sum())
    return {"mean": mean, "low": low, "high": high, "n": int(counts.sum()), "runs": runs}


def mean_embedding(embeddings) -> np.ndarray | None:
    """The unit vector [d] along the mean of unit vectors [n, d]; None of none at all."""
    if not len(embeddings):
        return None
    mean = np.asarray(embeddings, np.float64).mean(0)
    return mean / np.linalg.norm(mean)


def face_measures(embeddings, found, people, references, gallery, large_gallery=None) -> dict:
    """What a face recogniser says of generated pictures.

    A mean over found faces alone rewards a model for hiding the difficult ones, so the detection
    rate and the mean with misses as 0 stand beside it.

    Args:
        embeddings: [n, d], of each picture's face; rows without a face may hold anything.
        found: [n] bool, whether a face was found.
        people: [n], the name of the person that each picture is to show.
        references: name to the embedding [d] of the person's reference; pictures of people who
            have none are left out of everything.
        gallery: name to embedding of the set's people; the first ten are the smaller gallery.
        large_gallery: the same of some hundred people, or None.

    Returns:
        Measures by name. ``face_sim``: cosine with the reference over found faces, and
        ``face_sim_misses_as_0``; ``detection_rate``; ``cosine_true`` and ``cosine_others``: with
        the true person of the smaller gallery and, on average, with its others; ``rank1_10`` and
        ``rank1_100``: whether the nearest of the gallery is the right one, a missed face counting
        as wrong. The last two have "among", how many people the gallery holds.
    """
    known = np.array([name in references for name in people], bool)
    people = np.asarray(people, str)[known]
    embeddings = np.asarray(embeddings, np.float64)[known]
    found = np.asarray(found, bool)[known]
    if not len(people):
        return {}
    cosines = np.zeros(len(people))
    if found.any():
        own = np.stack([references[name] for name in people[found]])
        cosines[found] = cosine(embeddings[found], own)
    few = dict(list(gallery.items())[:FEW])
    measures = {
        "face_sim": measure(cosines[found], people[found]),
        "face_sim_misses_as_0": measure(cosines, people),
        "detection_rate": measure(found, people),
        **_to_true_and_others(embeddings, found, people, few),
        "rank1_10": _rank1(embeddings, found, people, few),
    }
    if large_gallery:
        measures["rank1_100"] = _rank1(embeddings, found, people, large_gallery)
    return measures


def _to_true_and_others(embeddings, found, people, gallery) -> dict:
    names = np.array(list(gallery), str)
    rows = found & np.isin(people, names)
    if not rows.any():
        return {"cosine_true": measure([], []), "cosine_others": measure([], [])}
    to_all = _unit(embeddings[rows]) @ _unit(np.stack(list(gallery.values()))).T
    true = names[None] == people[rows, None]
    measures = {"cosine_true": measure(to_all[true], people[rows])}
    others = (~true).sum(1)
    to_others = np.where(true, 0, to_all).sum(1)[others > 0] / others[others > 0]
    measures["cosine_others"] = measure(to_others, people[rows][others > 0])
    return measures


def _rank1(embeddings, found, people, gallery) -> dict:
    names = np.array(list(gallery), str)
    rows = np.isin(people, names)
    right = np.zeros(len(people))
    seen = rows & found
    if seen.any():
        nearest = (_unit(embeddings[seen]) @ _unit(np.stack(list(gallery.values()))).T).argmax(1)
        right[seen] = names[nearest] == people[seen]
    return {**measure(right[rows], people[rows]), "among": len(names)}


def _unit(rows):
    return rows / np.linalg.norm(rows, axis=-1, keepdims=True)
