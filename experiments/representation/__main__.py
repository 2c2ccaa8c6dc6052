"""`python -m experiments.representation`: see `command`."""

from experiments.command import cli
from experiments.representation import command

if __name__ == "__main__":
    cli.run(command.Config, command.main)
