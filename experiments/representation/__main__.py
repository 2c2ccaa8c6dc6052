"""`python -m experiments.representation`: see `command`."""

from experiments.command import flags
from experiments.representation import command

if __name__ == "__main__":
    flags.run(command.Config, command.main)
