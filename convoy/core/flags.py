"""Definition of a command's flags."""

from functools import partial

from absl import flags as absl_flags


class _OnceFlag(absl_flags.Flag[str]):
    """A flag that `FlagDefiner.once` defines."""

    def __init__(self, name: str, default: str | None, help_text: str, several: str):
        super().__init__(absl_flags.ArgumentParser(), absl_flags.ArgumentSerializer(), name, default, help_text)
        self._several = several

    def parse(self, argument: str) -> None:
        """Sets the value."""
        if self.present and argument != self.value:
            given = f"--{self.name}={self.value} and --{self.name}={argument}"
            raise absl_flags.IllegalFlagValueError(f"{given} are both given. {self._several}")
        super().parse(argument)


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
        self._flags = flags

    def once(self, name: str, default: str | None, help_text: str, several: str = "Pass one of them") -> None:
        """Defines a flag of text that cannot be given twice with different values, of which the last would win.

        Args:
          name: name of the flag.
          default: its default.
          help_text: its help.
          several: what to do instead.
        """
        absl_flags.DEFINE_flag(_OnceFlag(name, default, help_text, several), self._flags)
