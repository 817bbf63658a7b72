"""Fill the feature cache of a config: all that its examples need of frozen networks.

    python -m persongen_jax.features --config configs/photomaker_bg.py --config.cache=DIR
    python -m persongen_jax.features --config ... --worker 3 --workers 8

It can be stopped and started again, and several may share the work. docs/cache.md says more.
"""

import logging
import sys
from concurrent.futures import ThreadPoolExecutor

from absl import flags
from tqdm import tqdm

from persongen_jax.cli import define_config
from persongen_jax.features.cache import Features
from persongen_jax.systems.open import open_system

log = logging.getLogger(__name__)


def fill_cache(config, worker: int = 0, workers: int = 1, batch_size: int = 16) -> Features:
    """Computes and stores what the config's examples need: of every ``workers``-th record.

    Raises:
        ValueError: the config has no ``cache``, or what the trainer would refuse.
    """
    if not config.get("cache_kinds"):
        raise ValueError(f"config.system={config.system}: it has nothing that could be cached")
    if not config.cache:
        raise ValueError("config.cache is empty; give --config.cache=DIR, where features are kept")
    if not 0 <= worker < workers:
        raise ValueError(f"--worker {worker}: a number from 0 to --workers - 1 ({workers - 1})")
    source = open_system(config).examples(0, alone=True).source
    rows = range(worker, len(source.records), workers)

    def jobs():
        with ThreadPoolExecutor() as pool:
            # Some rows at a time: a picture that was never seen has to be decoded for its digest.
            for start in tqdm(range(0, len(rows), 64), unit="x64 records"):
                yield from pool.map(source.feature_jobs, rows[start : start + 64])

    source.features.fill(jobs(), batch_size)
    return source.features


def main(argv=None) -> int:
    argv = sys.argv if argv is None else ["features", *argv]
    values = flags.FlagValues()
    define_config("an experiment", values, argv)
    numbers = {
        "worker": (0, "which share of the records this process takes"),
        "workers": (1, "how many shares there are"),
        "batch": (16, "rows that are encoded at once"),
    }
    for name, (default, what) in numbers.items():
        least = 0 if name == "worker" else 1
        flags.DEFINE_integer(name, default, what, lower_bound=least, flag_values=values)
    try:
        values(argv)
        if values.config is None:
            raise ValueError("--config is missing; try --config configs/mini/photomaker_bg.py")
        features = fill_cache(values.config, values.worker, values.workers, values.batch)
    except (AttributeError, KeyError) as error:
        sys.exit(f"error: the config has no such key: {error.args[0]}")
    except (ValueError, TypeError, flags.Error, OSError, ImportError) as error:
        log.debug("", exc_info=True)
        sys.exit(f"error: {error}")
    print(features.used())
    return 0


if __name__ == "__main__":
    sys.exit(main())
