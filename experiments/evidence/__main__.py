"""`python -m experiments.evidence`: see `command`."""

from experiments.command import flags
from experiments.evidence import command

if __name__ == "__main__":
    flags.run(command.Config, command.main)
