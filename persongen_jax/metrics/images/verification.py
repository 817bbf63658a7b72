"""Verification: would a face recogniser take the generated face for that of its person?

The true accept rate at a stated false accept rate (TAR@FAR), as face recognition reports it
(ArcFace, Deng et al., arXiv 1801.07698, section 3.3). The threshold is set on real pictures of
different people, and so is the same for every method on the same people.
"""

import numpy as np

from persongen_jax.metrics.base import Generated, Known, NoFigure, Values
from persongen_jax.metrics.face_similarity import cosine
from persongen_jax.metrics.judged import JudgedByFaceNet

RULE_OF_30 = 30  # errors behind a rate that is known to 30 % (Doddington et al., 2000)


class Verification(JudgedByFaceNet):
    """1 where the cosine of the generated face and its owner's reference is above the threshold.

    An image without a face counts as 0, and the fact "no_face" counts those. NaN for owners without
    a face in their references. The threshold is the lowest at which at most ``far`` of the impostor
    pairs are accepted; these are real faces of different people, of the set and of
    ``known.others``: each person's references with everyone else's references and further pictures
    (at most eight of each person). Facts: "far", "impostor_pairs", "impostor_people", "threshold"
    (a cosine), and a "note" where fewer than 30 pairs are above it, which is too few to know the
    rate well (Doddington et al., Speech Communication 31, 2000). The interval is over the
    generated people; the threshold counts as given.

    Raises, when called:
        NoFigure: fewer than 1 / ``far`` impostor pairs.
    """

    form, plotted, bounds = "{:.1%}", False, (0.0, 1.0)
    far: float

    def prepare(self, known: Known) -> None:
        self.faces.references(known)
        self.faces.impostors(known)

    def __call__(self, generated: Generated, known: Known) -> Values:
        pairs, people = self.faces.impostors(known)
        among = f"{len(pairs):,} impostor pairs of {people} people"
        if len(pairs) * self.far < 1 - 1e-9:
            raise NoFigure(
                f"{among}, and a FAR of {self.far:g} needs at least {round(1 / self.far):,}: give "
                "more people with real pictures (config.validation_gallery, or --gallery)"
            )
        limit = threshold_at(pairs, self.far)
        embeddings, found = self.faces.embed(generated)
        references = self.faces.references(known)
        owners = np.asarray(generated.owners, str)
        known_owner = np.isin(owners, list(references))
        values = np.where(known_owner, 0.0, np.nan)
        seen = known_owner & found
        if seen.any():
            own = np.stack([references[name] for name in owners[seen]])
            values[seen] = cosine(embeddings[seen], own) > limit
        facts = {"far": self.far, "impostor_pairs": len(pairs), "impostor_people": people}
        facts |= {"threshold": round(limit, 6), "no_face": int((known_owner & ~found).sum())}
        note = f"the threshold {limit:.3f} is set by {among}"
        if len(pairs) * self.far < RULE_OF_30:
            wanted = round(RULE_OF_30 / self.far)
            note += f": too few for this FAR to be exact, which takes about {wanted:,}"
        return Values(values, facts={**facts, "note": note})


def threshold_at(cosines: np.ndarray, far: float) -> float:
    """The lowest threshold above which at most the share ``far`` of impostor cosines [n] lies.

    Args:
        cosines: n at least 1 / ``far``.
    """
    accepted = int(far * len(cosines) + 1e-9)  # 0.001 * 3000 is below 3 in floating point
    return float(np.partition(cosines, len(cosines) - 1 - accepted)[len(cosines) - 1 - accepted])


class VerificationAt1In100(Verification):
    """At a false accept rate of 1e-2."""

    name, title, far = "tar_far_1e2", "TAR@FAR=1e-2", 1e-2


class VerificationAt1In1000(Verification):
    """At a false accept rate of 1e-3."""

    name, title, far = "tar_far_1e3", "TAR@FAR=1e-3", 1e-3


class VerificationAt1In10000(Verification):
    """At a false accept rate of 1e-4."""

    name, title, far = "tar_far_1e4", "TAR@FAR=1e-4", 1e-4
