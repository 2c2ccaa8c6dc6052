"""`python -m experiments.semi_supervised`: see `command`."""

from experiments.command import cli
from experiments.semi_supervised import command

if __name__ == "__main__":
    cli.run(command.Config, command.main)
