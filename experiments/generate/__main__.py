"""`python -m experiments.generate`: see `command`."""

from experiments.command import flags
from experiments.generate import command

if __name__ == "__main__":
    flags.run(command.Config, command.main)
