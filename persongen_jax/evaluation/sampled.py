"""Validates systems that generate images from their fields alone: labels, attributes, nothing.

A system names cases (what to generate); this module generates an image for each, measures them by
``config.metrics`` and makes sheets. evaluation/people.py is the protocol for people.
"""

import jax
import numpy as np
from flax import nnx
from numpy.typing import ArrayLike

from data_pipeline.examples.fields import flatten
from persongen_jax.diffusion.options import SamplingOptions
from persongen_jax.diffusion.samplers import image_keys
from persongen_jax.evaluation.contact_sheet import MAX_ROWS, Row, contact_sheet
from persongen_jax.evaluation.people import Result
from persongen_jax.metrics.base import Generated, Known, Owner, People
from persongen_jax.metrics.judge_check import check_judges
from persongen_jax.metrics.measures import measure_all
from persongen_jax.metrics.registry import open_metrics
from persongen_jax.parallel.sharding import to_host
from persongen_jax.systems.diffusion import Cases, DiffusionSystem
from persongen_jax.training.stopping import Stopped

AT_ONCE = 64  # default batch size
WIDE = 8  # images in a row of a sheet


class SampledEvaluation:
    """Everything that is constant between validations.

    Args:
        system: systems.diffusion.DiffusionSystem with ``cases``. Reads its config's
            validation_steps, validation_guidance, validation_seed, validation_scheduler, metrics.

    Raises:
        ValueError: an unusable metric or judge.
    """

    generates = True

    def __init__(self, system: DiffusionSystem):
        self.system, self.config = system, system.config
        self.should_stop = lambda: False
        self.said: set[str] = set()  # about figures that are not there: printed once
        self.cases = {name: system.cases(name) for name in system.validation_sets}
        self.known = {name: known_of(cases, name) for name, cases in self.cases.items()}
        self.metrics = open_metrics(self.config)
        roots, admitted = system.trained_against, self.config.judges_are_inputs
        check_judges(self.metrics, system.model, roots, admitted)
        for known in self.known.values():
            for metric in self.metrics:
                metric.prepare(known)
        self.options = SamplingOptions.of_validation(self.config)
        self.plan = system.plan(self.options)

    def __call__(self, model: nnx.Module, step: int) -> dict[str, Result]:
        """The Result of every set, with images uint8 [n, h, w, 3]. Stopped if ``should_stop``."""
        results = {}
        for name, cases in self.cases.items():
            images = self._generate(model, cases)
            generated = Generated(images, cases.owners, cases.texts, _flat_inputs(cases.batch))
            row = {"step": step, "set": name, **self._settings(len(images))}
            row["metrics"] = measure_all(self.metrics, generated, self.known[name], self.said)
            results[name] = Result(row, images)
        return results

    def _settings(self, images: int) -> dict:
        """What the figures depend on other than the weights."""
        config = self.config
        return {
            "method": self.system.label,
            "seed": config.seed,
            "sampling_steps": self.options.num_inference_steps,
            "guidance": self.options.guidance,
            "images": images,
        }

    def _generate(self, model, cases: Cases) -> np.ndarray:
        """uint8 [n, h, w, 3]; image i starts from the same noise at every step of training."""
        system, n = self.system, len(cases.owners)
        _, *shape = system.codec.shape(system.model, system.abstract_batch())
        guidance, out = self.options.guidance if self.options.guides else None, []
        batch = min(n, AT_ONCE)
        # The sampler's own noise must differ from the initial noise.
        seed = self.options.seed or 0
        first, keys = (image_keys(seed, purpose, n) for purpose in (0, 1))
        for start in range(0, n, batch):
            if self.should_stop():
                raise Stopped
            # The last batch is padded with its last image: every batch has the same shape.
            rows = np.minimum(np.arange(start, start + batch), n - 1)
            noise = jax.vmap(lambda key: jax.random.normal(key, shape))(first[rows])
            inputs = {"batch": jax.tree.map(lambda a: a[rows], cases.batch), "guidance": guidance}  # noqa: B023
            images = system.sample(model, inputs, noise, self.plan, keys[rows])
            out.append(to_host(images)[: n - start])
        return as_rgb((np.concatenate(out) * 255).round().astype(np.uint8))

    def sheet(self, name: str, images: np.ndarray) -> np.ndarray:
        """The contact sheet of a set, uint8 [h, w, 3]: a row per owner."""
        return contact_sheet([row for *_, row in self.rows(name, images)])

    def rows(self, name: str, images: np.ndarray) -> list[tuple[int, int, Row]]:
        """(index of the owner, 0, row of a sheet), with a real image in place of the reference."""
        cases, rows = self.cases[name], []
        owners = np.asarray(cases.owners, str)
        for i, owner in enumerate(dict.fromkeys(cases.owners)):
            own = list(images[owners == owner][:WIDE])
            real = cases.real.get(owner)
            reference = np.full_like(own[0], 255) if real is None else as_rgb(real[0])
            rows.append((i, 0, Row(owner, reference, own, owner)))
        return rows[:MAX_ROWS]


def as_rgb(images: ArrayLike) -> np.ndarray:
    """uint8 [..., h, w], [..., h, w, 1] or [..., h, w, 3] to [..., h, w, 3]."""
    images = np.asarray(images)
    if images.shape[-1] not in (1, 3):
        images = images[..., None]
    return np.repeat(images, 3, axis=-1) if images.shape[-1] == 1 else images


def _flat_inputs(batch: dict) -> dict:
    return {name: np.asarray(array) for name, array in flatten(batch).items()}


def known_of(cases: Cases, name: str) -> Known:
    """The real pictures of a set as metrics take them."""

    def owner(key: str) -> Owner:
        def pictures(limit=None):
            return [as_rgb(picture) for picture in cases.real[key][:limit]]

        return Owner(key, list, pictures)

    return Known(name, People(lambda: [owner(key) for key in cases.real]), People(list))
