"""One training step: gradients of the system's losses for the trained weights, and the update.

systems/assembly.py combines it with a system's weights and optimizer; nothing else builds a step.
"""

import dataclasses
import functools
import time
from collections.abc import Callable, Iterable
from typing import Any, Self

import jax
import jax.numpy as jnp
import optax
from flax import nnx
from jax.typing import ArrayLike

from data_pipeline.examples.fields import flatten
from persongen_jax.parallel.sharding import gather_weights
from persongen_jax.training import flop_count
from persongen_jax.training.optimizer import ema_decay_at, eval_params


def step_key(seed: ArrayLike, step: ArrayLike, purpose: ArrayLike) -> jax.Array:
    """A key that depends on these three alone, so that a resumed run draws the same numbers."""
    return jax.random.fold_in(jax.random.fold_in(jax.random.key(seed), step), purpose)


def keys_of(seed: int, step: ArrayLike) -> Callable[[int], jax.Array]:
    """Maps purpose to key, for ``System.draw``."""
    return functools.partial(step_key, seed, step)


def merge_model(graphdef: nnx.GraphDef, arrays: dict, frozen: nnx.State) -> nnx.Module:
    """The model with these arrays, by path; called inside the compiled step.

    ``arrays`` are what split_model returned as trainable. Others replace frozen arrays.
    """
    flat = dict(nnx.to_flat_state(frozen))
    values = {key_of(path): value for path, value in arrays.items()}
    trained = [(key, nnx.Param(value)) for key, value in values.items() if key not in flat]
    if len(trained) < len(values):
        replaced = {k: v.replace(values[k]) if k in values else v for k, v in flat.items()}
        frozen = nnx.from_flat_state(list(replaced.items()))
    return nnx.merge(graphdef, nnx.from_flat_state(trained), frozen)


def key_of(path: str) -> tuple:
    """ "unet/down_blocks/0" to ("unet", "down_blocks", 0), NNX's form of a path."""
    return tuple(int(part) if part.isdigit() else part for part in path.split("/"))


@jax.tree_util.register_dataclass
@dataclasses.dataclass
class TrainState:
    """What a step changes: float32 arrays by path, the optimizer's state, the running average.

    ``ema`` is empty if no average is kept; ``stats`` holds the statistics that the model's layers
    gather, by path, and is empty for systems without any.
    """

    trainable: dict
    opt_state: Any
    ema: dict
    stats: dict = dataclasses.field(default_factory=dict)

    @classmethod
    def create(
        cls,
        trainable: dict,
        tx: optax.GradientTransformation,
        ema_decay: float,
        stats: dict | None = None,
    ) -> Self:
        # Copies: the step donates its arguments' memory, and the model keeps the originals.
        ema = jax.tree.map(jnp.copy, trainable) if ema_decay > 0 else {}
        stats = jax.tree.map(jnp.copy, stats or {})
        return cls(jax.tree.map(jnp.copy, trainable), tx.init(trainable), ema, stats)

    @property
    def average(self) -> dict:
        """The weights to use instead of ``trainable``: a running average, a schedule-free
        optimizer's average, or {} if there is none."""
        average = self.ema or eval_params(self.opt_state, self.trainable)
        return {} if average is self.trainable else average

    @property
    def eval_params(self) -> dict:
        """What validation uses: the average if there is one, with ``stats``."""
        return {**(self.average or self.trainable), **self.stats}


def make_train_step(
    system: Any, graphdef: nnx.GraphDef, tx: optax.GradientTransformation, *, out: Any = None
) -> jax.stages.Wrapped:
    """A jitted step(state, frozen, batch, step) to (state, metrics); it donates the state's memory.

    ``metrics`` are means over the batch: "loss", "grad_norm", and everything else that
    ``System.losses`` returns. If the loss or the gradient's norm is not finite, the state does not
    change, and ``metrics["skipped"]`` is 1.

    Args:
        system: its ``draw`` and ``losses`` define the objective; its config's grad_accum splits the
            batch into this many equal parts that are processed in turn, which needs less memory and
            gives the gradient of the whole batch; ema_decay and ema_warmup are read as well.
        graphdef: of partition.split_model; tx: the optimizer.
        out: the sharding of the outputs.
    """
    config = system.config

    @functools.partial(jax.jit, donate_argnums=0, out_shardings=out)
    def train_step(state, frozen, batch, step):
        def mean_loss(trainable, batch, draws):
            model = merge_model(graphdef, {**gather_weights(trainable), **state.stats}, frozen)
            means = {name: x.mean() for name, x in system.losses(model, batch, draws).items()}
            return means.pop("loss"), (means, statistics_of(model) if system.statistics else {})

        gradients = jax.value_and_grad(mean_loss, has_aux=True)
        examples = (batch, system.draw(keys_of(config.seed, step), batch))
        if config.grad_accum == 1:
            (loss, (terms, stats)), grads = gradients(state.trainable, *examples)
        else:
            (loss, (terms, stats)), grads = accumulate(
                gradients, state.trainable, examples, config.grad_accum
            )
        updates, opt_state = tx.update(grads, state.opt_state, state.trainable)
        trainable = optax.apply_updates(state.trainable, updates)
        ema = {}
        if config.ema_decay > 0:
            decay = ema_decay_at(config.ema_decay, config.ema_warmup, step)
            # decay * ema + (1 - decay) * trainable
            ema = optax.incremental_update(state.ema, trainable, decay)
        norm = optax.global_norm(grads)
        good = jnp.isfinite(loss) & jnp.isfinite(norm)
        # Select element-wise instead of branching: it fuses with writing the update.
        new = TrainState(trainable, opt_state, ema, stats)
        new = jax.tree.map(lambda a, b: jnp.where(good, a, b), new, state)
        skipped = (~good).astype(jnp.int32)
        taken = {"loss": loss, "grad_norm": norm, "skipped": skipped}
        if taken.keys() & terms.keys():
            raise ValueError(
                f"losses: {', '.join(taken.keys() & terms.keys())} is the step's own name"
            )
        return new, {**taken, **terms}

    return train_step


def statistics_of(model: nnx.Module) -> dict:
    """Statistics that a model's layers have gathered (running means and variances), by path."""
    flat = nnx.to_flat_state(nnx.state(model, nnx.BatchStat))
    return {"/".join(map(str, path)): leaf.get_value() for path, leaf in flat}


def accumulate(gradients: Callable, trainable: dict, examples: tuple, parts: int) -> Any:
    """``gradients(trainable, *examples)`` from ``parts`` equal parts of the examples, in turn.

    All of its outputs are means over the examples, and so are these.
    """

    def split(array):
        # Part i has rows i, i + parts, ...: every device holds its share of every part.
        return array.reshape(-1, parts, *array.shape[1:]).swapaxes(0, 1)

    def add(total, part):
        return jax.tree.map(jnp.add, total, gradients(trainable, *part)), None

    split_examples = jax.tree.map(split, examples)
    shapes = jax.eval_shape(gradients, trainable, *jax.tree.map(lambda x: x[0], split_examples))
    zeros = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), shapes)
    total, _ = jax.lax.scan(add, zeros, split_examples)
    return jax.tree.map(lambda x: x / parts, total)


class CompiledSteps:
    """Compiles a jitted step once per batch shape, at its first use.

    Args:
        train_step: step(state, frozen, batch, step).
        specs: of examples, flat name to (shape, dtype), one per possible shape; a batch of any
            other shape is an error and never triggers a compilation.
        say: called with (number of the program, FLOPs, seconds) after each compilation.
    """

    def __init__(
        self,
        train_step: jax.stages.Wrapped,
        specs: Iterable[dict],
        say: Callable[[int, int, float], object] = lambda *_: None,
    ):
        self._train_step, self._say = train_step, say
        self._known = {tuple(sorted((n, tuple(s)) for n, (s, _) in spec.items())) for spec in specs}
        self._programs: dict[tuple, tuple] = {}
        self._flops, self._steps = 0.0, 0

    @property
    def compiled(self) -> int:
        """The number of programs; never more than shapes."""
        return len(self._programs)

    @property
    def expected(self) -> int:
        """The largest possible number of programs."""
        return len(self._known)

    def prepare(
        self, state: TrainState, frozen: nnx.State, batch: dict, step: ArrayLike
    ) -> tuple[Callable, int, float]:
        """Compile the batch's program unless it exists; ValueError for an unknown shape."""
        shapes = tuple(sorted((n, tuple(a.shape[1:])) for n, a in flatten(batch).items()))
        if shapes in self._programs:
            return self._programs[shapes]
        if shapes not in self._known:
            different = set(shapes) - set().union(*self._known)
            raise ValueError(
                "a batch has a shape that the data did not declare: "
                + ", ".join(f"{name} {shape}" for name, shape in sorted(different))
            )
        made = compile_step(self._train_step, state, frozen, batch, step)
        self._programs[shapes] = made
        self._say(self.compiled, *made[1:])
        return made

    def __call__(
        self, state: TrainState, frozen: nnx.State, batch: dict, step: ArrayLike
    ) -> tuple[TrainState, dict]:
        program, flops, _ = self.prepare(state, frozen, batch, step)
        self._flops, self._steps = self._flops + flops, self._steps + 1
        return program(state, frozen, batch, step)

    def flops_per_step(self) -> float:
        """The mean over the steps since the last call."""
        flops, self._flops, self._steps = self._flops / max(1, self._steps), 0.0, 0
        return flops


def compile_step(train_step: jax.stages.Wrapped, *arguments: Any) -> tuple[Callable, int, float]:
    """(the compiled program, its floating-point operations, seconds of compilation).

    The program refuses other shapes, so nothing can compile a second one later.
    """
    start = time.perf_counter()
    program = train_step.trace(*arguments).lower().compile()
    seconds = time.perf_counter() - start
    return program, flop_count.of_function(train_step, *arguments), seconds
