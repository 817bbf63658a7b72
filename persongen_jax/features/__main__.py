"""Fill the feature cache of a config: all frozen networks' outputs that its examples need.

    python -m persongen_jax.features --config configs/photomaker_bg.py --config.cache=DIR
    python -m persongen_jax.features --config ... --worker 3 --workers 8

It can be interrupted and resumed, and several processes may share the work. See docs/cache.md.
"""

import logging
import sys
from concurrent.futures import ThreadPoolExecutor

from absl import flags
from ml_collections import config_flags
from tqdm import tqdm

from persongen_jax.features.cache import Features
from persongen_jax.systems.open import open_system

log = logging.getLogger(__name__)


def fill_cache(config, worker: int = 0, workers: int = 1, batch_size: int = 16) -> Features:
    """Compute and store what the config's examples need, for every ``workers``-th record.

    Raises:
        ValueError: the config has no ``cache``, or anything that the trainer would refuse.
    """
    if not config.get("cache_kinds"):
        raise ValueError(f"config.system={config.system}: it has nothing to cache")
    if not config.cache:
        raise ValueError("config.cache is empty; give --config.cache=DIR, where to store features")
    if not 0 <= worker < workers:
        raise ValueError(f"--worker {worker}: a number from 0 to --workers - 1 ({workers - 1})")
    source = open_system(config).examples(0, alone=True).source
    rows = range(worker, len(source.records), workers)

    def jobs():
        with ThreadPoolExecutor() as pool:
            # Some rows at a time: an image that was never seen must be decoded for its digest.
            for start in tqdm(range(0, len(rows), 64), unit="x64 records"):
                yield from pool.map(source.feature_jobs, rows[start : start + 64])

    source.features.fill(jobs(), batch_size)
    return source.features


def main(argv=None) -> int:
    argv = sys.argv if argv is None else ["features", *argv]
    values = flags.FlagValues()
    config_flags.DEFINE_config_file(
        "config", None, "an experiment", flag_values=values, sys_argv=argv
    )
    numbers = {
        "worker": (0, "which share of the records this process handles"),
        "workers": (1, "how many shares there are"),
        "batch": (16, "rows to encode at once"),
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
