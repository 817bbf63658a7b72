"""What commands with a config do with their arguments."""

import sys

from absl import flags
from ml_collections import config_flags
from ml_collections.config_flags.config_flags import ConfigFileFlagParser

from persongen_jax.config import config_file


class InstalledConfigs(ConfigFileFlagParser):
    """Reads a config file, also one of the installed configs/."""

    def parse(self, path):
        return super().parse(config_file(path))


def define_config(what: str, values: flags.FlagValues = flags.FLAGS, argv=None) -> flags.FlagHolder:
    """The flag --config, with an override --config.KEY=VALUE for each of the config's keys."""
    flag = config_flags.DEFINE_config_file("config", None, what, flag_values=values, sys_argv=argv)
    values["config"].parser = InstalledConfigs("config")
    return flag


def parse_flags(argv):
    """absl's parsing; a key that the config does not have ends in a line, not in a trace."""
    try:
        return flags.FLAGS(argv)
    except (AttributeError, KeyError) as error:
        sys.exit(f"error: the config has no such key: {error.args[0]}")
    except (TypeError, flags.Error, OSError) as error:
        sys.exit(f"error: {error}")
