"""How commands with a config parse their arguments."""

import sys

from absl import flags


def parse_flags(argv):
    """absl's parsing; a key that the config lacks prints a line instead of a traceback."""
    try:
        return flags.FLAGS(argv)
    except (AttributeError, KeyError) as error:
        sys.exit(f"error: the config has no such key: {error.args[0]}")
    except (TypeError, flags.Error, OSError) as error:
        sys.exit(f"error: {error}")
