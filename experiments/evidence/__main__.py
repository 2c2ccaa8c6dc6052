"""`python -m experiments.evidence`: see `command`."""

from experiments.command import cli
from experiments.evidence import command

if __name__ == "__main__":
    cli.run(command.Config, command.main)
