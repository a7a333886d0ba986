"""Prints the help of all commands as Markdown, as their --help does one by one."""

from fisher_keras.experiments.command_line.table import COMMANDS

if __name__ == "__main__":
    for name, command in COMMANDS.items():
        print(f"## {name}\n\n```text\n{command.help().strip()}\n```\n")
