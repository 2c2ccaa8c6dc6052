"""`python -m experiments.completion`: see `command`."""

from experiments.command import cli
from experiments.completion import command

if __name__ == "__main__":
    cli.run(command.Config, command.main)
