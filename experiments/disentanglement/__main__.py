"""`python -m experiments.disentanglement`: see `command`."""

from experiments.command import cli
from experiments.disentanglement import command

if __name__ == "__main__":
    cli.run(command.Config, command.main)
