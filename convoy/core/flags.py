"""Definition of a command's flags."""

from functools import partial

from absl import flags as absl_flags


class FlagDefiner:
    """absl's functions `DEFINE_string`, `DEFINE_integer`, ..., bound to one set of flags.

    define = FlagDefiner(flags)
    define.string("data", None, "dataset directory")
    """

    def __init__(self, flags: absl_flags.FlagValues):
        """Args: flags: the set that the functions add flags to."""
        self.string = partial(absl_flags.DEFINE_string, flag_values=flags)
        self.integer = partial(absl_flags.DEFINE_integer, flag_values=flags)
        self.float = partial(absl_flags.DEFINE_float, flag_values=flags)
        self.bool = partial(absl_flags.DEFINE_bool, flag_values=flags)
        self.enum = partial(absl_flags.DEFINE_enum, flag_values=flags)
        self.list = partial(absl_flags.DEFINE_list, flag_values=flags)
        self.multi_string = partial(absl_flags.DEFINE_multi_string, flag_values=flags)
