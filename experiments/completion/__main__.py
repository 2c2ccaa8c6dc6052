"""`python -m experiments.completion`: see `command`."""

from experiments.command import flags
from experiments.completion import command

if __name__ == "__main__":
    flags.run(command.Config, command.main)
