"""Fill the feature cache of a config: all frozen networks' outputs that its examples need.

    python -m persongen_jax.features --config configs/photomaker_bg.py --config.cache=DIR
    python -m persongen_jax.features --config ... --worker 3 --workers 8

It can be interrupted and resumed, and several processes may share the work. See docs/cache.md.
"""

import argparse
import functools
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from ml_collections import ConfigDict
from tqdm import tqdm

from persongen_jax.cli import command, parse_with_config
from persongen_jax.features.cache import Features
from persongen_jax.systems.open import open_system


def fill_cache(
    config: ConfigDict, worker: int = 0, workers: int = 1, batch_size: int = 16
) -> Features:
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
    if batch_size < 1:
        raise ValueError(f"--batch {batch_size}: give 1 or more")
    source: Any = open_system(config).examples(0, alone=True).source
    rows = range(worker, len(source.records), workers)

    def jobs():
        with ThreadPoolExecutor() as pool:
            # Some rows at a time: an image that was never seen must be decoded for its digest.
            for start in tqdm(range(0, len(rows), 64), unit="x64 records"):
                yield from pool.map(source.feature_jobs, rows[start : start + 64])

    source.features.fill(jobs(), batch_size)
    return source.features


@command
def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        prog="python -m persongen_jax.features",
        description=__doc__.split("\n")[0],
        allow_abbrev=False,
    )
    add = functools.partial(parser.add_argument, type=int)
    add("--worker", default=0, help="which share of the records this process takes")
    add("--workers", default=1, help="how many shares there are")
    add("--batch", default=16, help="rows that are encoded at once")
    args, config = parse_with_config(parser, argv, "configs/mini/photomaker_bg.py")
    print(fill_cache(config, args.worker, args.workers, args.batch).summary())


if __name__ == "__main__":
    main()
