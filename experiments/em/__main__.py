"""`python -m experiments.em`: see `command`."""

from experiments.command import cli
from experiments.em import command

if __name__ == "__main__":
    cli.run(command.Config, command.main)
