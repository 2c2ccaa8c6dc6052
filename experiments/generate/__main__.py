"""`python -m experiments.generate`: see `command`."""

from experiments.command import cli
from experiments.generate import command

if __name__ == "__main__":
    cli.run(command.Config, command.main)
