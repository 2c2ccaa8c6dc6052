"""`python -m experiments.posterior_gap`: see `command`."""

from experiments.command import flags
from experiments.posterior_gap import command

if __name__ == "__main__":
    flags.run(command.Config, command.main)
