"""The optimizer by name, with a learning rate per group, and the weights to evaluate.

    tx = make_optimizer(config, groups)      # config.optimizer, config.optimizer_options
    evaluated = eval_params(opt_state, trainable)

``config.optimizer`` is any optimizer of ``optax`` or ``optax.contrib`` that updates weights from
gradients alone; :func:`known` lists them. They include adam, adamw (Loshchilov and Hutter, arXiv
1711.05101, algorithm 2), adafactor (Shazeer and Stern, 1804.04235, algorithms 4 and 5), lion (Chen
et al., 2302.06675, algorithm 2), prodigy (Mishchenko and Defazio, 2306.06101, the Adam version),
schedule_free_adamw (Defazio et al., 2405.15682, algorithm 1) and :func:`muon`. Each group of
trained weights has its own optimizer; prodigy, for example, estimates a distance per group.
"""

import functools
import inspect
import re
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax.typing import ArrayLike
from ml_collections import ConfigDict
from optax import contrib

# ---- The learning rate -------------------------------------------------------------------------

# The fraction of the rate that is left after a fraction of the steps that follow the warm-up.
DECAYS = {
    "constant": lambda progress: 1.0,
    "cosine": lambda progress: 0.5 * (1 + jnp.cos(jnp.pi * progress)),
    "linear": lambda progress: 1 - progress,
}


def learning_rate(config: ConfigDict, rate: float) -> Callable[[ArrayLike], jax.Array]:
    """step to learning rate: ``rate`` * min(1, (step + 1) / warmup_steps), then the decay.

    Step 0 already changes the weights. After the warm-up ``config.lr_schedule`` keeps the rate
    ("constant") or decays it to 0 at ``config.schedule_steps`` or, if that is 0, at
    ``config.steps`` ("cosine", "linear").

    Raises:
        ValueError: an unknown ``config.lr_schedule``.
    """
    if config.lr_schedule not in DECAYS:
        raise ValueError(f"config.lr_schedule={config.lr_schedule!r}: use {', '.join(DECAYS)}")
    warmup, decay = config.warmup_steps, DECAYS[config.lr_schedule]
    decaying = max(1, (config.get("schedule_steps", 0) or config.steps) - warmup)

    def schedule(step):
        warm = jnp.minimum(1.0, (step + 1) / max(1, warmup))
        return rate * warm * decay(jnp.clip((step - warmup) / decaying, 0.0, 1.0))

    return schedule


# ---- Optimizers by name ------------------------------------------------------------------------

# Abbreviations.
ALIASES = {"schedule_free": "schedule_free_adamw"}
# Optimizers whose validation weights are an average that is part of their state.
AVERAGING = ("schedule_free_adamw", "schedule_free_sgd")
# Optimizers that cannot be used here, and why.
UNFIT = {
    "lbfgs": "it evaluates the loss several times in a step",
    "momo": "it reads the loss",
    "momo_adam": "it reads the loss",
    "sophia": "it differentiates the loss twice",
    "dpsgd": "it needs the gradient of every example",
    "optimistic_adam": "it takes no warm-up; optimistic_adam_v2 does",
    "noisy_sgd": "a checkpoint cannot hold its random key",
    "galore": "a checkpoint cannot hold its empty arrays",
    "rprop": "it takes no warm-up",
    "sm3": "it takes no warm-up",
}
# Options that are already keys of the config.
ELSEWHERE = {
    "learning_rate": "config.lr_<group>",
    "warmup_steps": "config.warmup_steps",
}
# Arguments of optax's muon that our wrapper sets.
OURS = ("learning_rate", "adam_learning_rate", "muon_weight_dimension_numbers")
MATRICES = re.compile(r"(.*/)?(kernel|lora/(down|up))")


def make_optimizer(
    config: ConfigDict,
    groups: dict[str, str],
    rules: Mapping[str, optax.GradientTransformation] | None = None,
) -> optax.GradientTransformation:
    """``config.optimizer`` for every group, each with its rate.

    The rate is ``config.lr_<group>``, see :func:`learning_rate`; everything else is
    ``config.optimizer_options``, keyword arguments of the optimizer. ``config.clip_norm`` above 0
    first clips the global gradient norm over all groups.

    Args:
        groups: maps the path of a trained array to its group.
        rules: by group, what changes the optimizer's update.

    Returns:
        A transformation of {path: float32 array}, any shapes.

    Raises:
        ValueError: a group without a rate; an unknown ``config.lr_schedule``; an optimizer that is
            unknown or unsuitable, or does not accept these options; a running average in addition
            to an optimizer that averages weights itself.
    """
    name, make, options = _resolve(config)
    transforms = {}
    for group in sorted(set(groups.values())):
        key = f"lr_{group}"
        if key not in config:
            raise ValueError(f"the config has no {key!r}, the learning rate of group {group!r}")
        rate = learning_rate(config, config[key])
        transforms[group] = _make(name, make, rate, options)
        if rules and group in rules:
            transforms[group] = optax.chain(transforms[group], rules[group])
    tx = optax.partition(transforms, groups)
    if config.clip_norm > 0:
        tx = optax.chain(optax.clip_by_global_norm(config.clip_norm), tx)

    def init(params):
        # Some states hold the weights themselves (prodigy): copy them, as a step donates memory.
        given = {id(array) for array in jax.tree.leaves(params)}
        return jax.tree.map(lambda x: jnp.copy(x) if id(x) in given else x, tx.init(params))

    return optax.GradientTransformationExtraArgs(init, tx.update)


@functools.cache
def known_optimizers() -> dict:
    """Maps name to function(learning_rate, **options) for every optimizer a config can name."""
    found: dict[str, Callable] = {}
    for library in (contrib, optax):
        for name, function in inspect.getmembers(library, inspect.isfunction):
            if name.startswith(("_", "scale_by_")) or name in {*UNFIT, *ALIASES}:
                continue
            if "learning_rate" in inspect.signature(function).parameters:
                found[name] = function
    found["muon"] = muon
    for name in ("prodigy", "dadapt_adamw"):
        found[name] = _skip_zero_gradients(found[name])
    return dict(sorted(found.items()))


def _resolve(config) -> tuple:
    """(name, function, options) of a config; ValueError if they do not fit each other."""
    name, options = config.optimizer.replace("-", "_"), dict(config.optimizer_options)
    name, there = ALIASES.get(name, name), known_optimizers()
    what, among = f"config.optimizer={config.optimizer!r}", f"use one of {', '.join(there)}"
    if name in UNFIT:
        raise ValueError(f"{what} cannot be used here, because {UNFIT[name]}; {among}")
    if name not in there:
        exists = hasattr(optax, name) or hasattr(contrib, name)
        fault = "is in optax but is not an optimizer" if exists else "is unknown"
        raise ValueError(f"{what} {fault}; {among}")
    if name in AVERAGING and config.ema_decay > 0:
        raise ValueError(
            f"{what} averages the weights itself: set config.ema_decay=0, not {config.ema_decay}"
        )
    parameters = inspect.signature(there[name]).parameters
    taken = [key for key in parameters if key not in ELSEWHERE]
    for key in options:
        if key in ELSEWHERE:
            raise ValueError(f"config.optimizer_options: set {key} by {ELSEWHERE[key]}")
        if key not in taken:
            raise ValueError(
                f"config.optimizer_options: {name} has no option {key!r}; it takes "
                f"{', '.join(taken) or 'none'}"
            )
    for key in taken:
        if parameters[key].default is inspect.Parameter.empty and key not in options:
            raise ValueError(f"{what} needs {key!r} in config.optimizer_options")
    return name, there[name], options


def _make(name, make, rate, options):
    try:
        tx = make(learning_rate=rate, **options)
        if options:  # optax checks many of them only in the first step
            params = {"kernel": jnp.zeros((2, 2)), "bias": jnp.zeros(2)}
            jax.eval_shape(lambda p: tx.update(p, tx.init(p), p), params)
    except Exception as error:  # whatever optax raises, the options are the cause
        said = " ".join(str(error).split())[:300]
        raise ValueError(f"config.optimizer_options={options} do not fit {name}: {said}") from error
    return tx


def _skip_zero_gradients(make):
    """Wraps optimizers that divide by the sum of all gradients so far (prodigy, D-Adapt).

    While all gradients of a group are 0, their estimate of the distance is 0 / 0 and would stay NaN
    for ever; so the state does not change until then.
    """

    @functools.wraps(make)
    def waiting(*args, **options):
        tx = make(*args, **options)

        def update(gradients, state, params=None, **extra):
            updates, new = tx.update(gradients, state, params, **extra)
            started = jnp.isfinite(new.estim_lr)
            updates = jax.tree.map(lambda u: jnp.where(started, u, 0.0), updates)
            return updates, jax.tree.map(lambda a, b: jnp.where(started, a, b), new, state)

        return optax.GradientTransformationExtraArgs(tx.init, update)

    return waiting


def muon(
    learning_rate: float | Callable[[ArrayLike], ArrayLike], adam_ratio: float = 1.0, **options: Any
) -> optax.GradientTransformation:
    """Muon (Jordan et al. 2024, kellerjordan.github.io/posts/muon) for matrices, else AdamW.

    Matrices are "…/kernel", "…/lora/down" and "…/lora/up" of rank 2 or higher; they map all axes
    but the last to the last: [h, w, in, out] is seen as [h * w * in, out].

    Args:
        learning_rate: for matrices, a number or a function of the step. Muon's updates differ in
            size from Adam's; with ``consistent_rms=0.2`` Adam's rates fit (Liu et al., arXiv
            2502.16982, section 2.2).
        adam_ratio: all other weights use this times ``learning_rate``.
        options: of optax.contrib.muon; ``nesterov`` and ``mu_dtype`` apply to AdamW too.
    """

    def adam_rate(step):
        return adam_ratio * (learning_rate(step) if callable(learning_rate) else learning_rate)

    return contrib.muon(
        learning_rate,
        adam_learning_rate=adam_rate,
        muon_weight_dimension_numbers=_matrix_axes,
        **options,
    )


# Its own parameters and the ones it passes on to optax: what options are checked against.
muon.__signature__ = inspect.Signature(  # type: ignore[attr-defined]  # inspect reads it
    [
        inspect.Parameter("learning_rate", inspect.Parameter.KEYWORD_ONLY),
        inspect.Parameter("adam_ratio", inspect.Parameter.KEYWORD_ONLY, default=1.0),
        *(
            parameter.replace(kind=inspect.Parameter.KEYWORD_ONLY)
            for key, parameter in inspect.signature(contrib.muon).parameters.items()
            if key not in OURS
        ),
    ]
)


def _matrix_axes(params):
    """Maps each array to its MuonDimensionNumbers, or None where Adam updates it."""

    def axes(keys, array):
        path = jax.tree_util.keystr(keys, simple=True, separator="/")
        if array.ndim < 2 or not MATRICES.fullmatch(path):
            return None
        return contrib.MuonDimensionNumbers(tuple(range(array.ndim - 1)), (array.ndim - 1,))

    return jax.tree_util.tree_map_with_path(axes, params)


# ---- The weights to evaluate ---------------------------------------------------------------------


def eval_params(opt_state: Any, trainable: dict) -> dict:
    """The weights to validate and export: {path: array}, shapes and shardings as ``trainable``.

    Schedule-free optimizers take gradients at y, which is ``trainable``; what converges is the
    average x, which follows from y and their state (Defazio et al., arXiv 2405.15682, algorithm
    1). For any other optimizer this returns ``trainable`` itself, the same object.
    """

    def averages(part):
        return isinstance(part, contrib.ScheduleFreeState)

    averaged = {}
    for state in filter(averages, jax.tree.leaves(opt_state, is_leaf=averages)):
        # The state of one group has placeholders for the arrays of the others.
        z = {path: x for path, x in state.z.items() if not isinstance(x, optax.MaskedNode)}
        y = {path: trainable[path] for path in z}
        averaged |= _average(state._replace(z=z, base_optimizer_state=None), y)
    return {**trainable, **averaged} if averaged else trainable


_average = jax.jit(contrib.schedule_free_eval_params)


def ema_decay_at(ema_decay: float, ema_warmup: bool, step: ArrayLike) -> float | jax.Array:
    """The decay of the running average at update ``step``, counted from 0.

    With ``ema_warmup`` it is min(ema_decay, (1 + step) / (10 + step)), as in diffusers' EMAModel:
    so that an average of few updates forgets the initial weights.
    """
    if not ema_warmup:
        return ema_decay
    return jnp.minimum(ema_decay, (1 + step) / (10 + step))
