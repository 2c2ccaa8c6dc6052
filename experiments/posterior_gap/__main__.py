"""`python -m experiments.posterior_gap`: see `command`."""

from experiments.command import cli
from experiments.posterior_gap import command

if __name__ == "__main__":
    cli.run(command.Config, command.main)
