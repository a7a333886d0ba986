"""What a command is made of."""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any, Self

from fisher_keras.experiments.command_line import flags


@dataclasses.dataclass(frozen=True)
class Command:
    """A command: flags into one call.

    Attributes:
        define_flags: Defines its flags.
        read_flags: Returns what they ask for, once they are parsed.
        run: Does it.
        flag_groups: The groups that --help lists the flags in.
        resume_flag: What it needs to go on after it was stopped; None if the same flags do.
    """

    define_flags: Callable[[], None]
    read_flags: Callable[[], Any]
    run: Callable[[Any], object]
    flag_groups: Sequence[str]
    resume_flag: str | None = None

    @classmethod
    def of(
        cls, config: type, run: Callable[[Any], object], resume_flag: str | None = None
    ) -> Self:
        """Returns the command whose flags fill a dataclass.

        Args:
            config: The dataclass, see `flags.option`.
            run: Is called with an instance of it.
            resume_flag: See above.
        """
        return cls(
            lambda: flags.define_flags(config),
            lambda: flags.from_flags(config),
            run,
            flags.flag_groups(config),
            resume_flag,
        )
