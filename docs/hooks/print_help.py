"""Prints the help of all commands as Markdown, as their --help does one by one."""

import importlib

from absl import flags

from fisher_keras.experiments.command_line import main


def print_help() -> None:
    """Prints a heading and the help of each command."""
    for name in main._names():
        module = importlib.import_module(f"fisher_keras.experiments.commands.{name}")
        before = set(flags.FLAGS)
        module.COMMAND.define_flags()
        text = [module.__doc__.strip()]
        text += [flags.FLAGS.module_help(group).strip() for group in module.COMMAND.flag_groups]
        for flag in set(flags.FLAGS) - before:
            delattr(flags.FLAGS, flag)
        print(f"## {name}\n\n```text\n", "\n\n".join(text), "\n```\n", sep="")


if __name__ == "__main__":
    print_help()
