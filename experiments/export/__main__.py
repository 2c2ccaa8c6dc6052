"""`python -m experiments.export`: see `command`."""

from experiments.command import cli
from experiments.export import command

if __name__ == "__main__":
    cli.run(command.Config, command.main)
