"""`python -m experiments.anomaly`: see `command`."""

from experiments.anomaly import command
from experiments.command import cli

if __name__ == "__main__":
    cli.run(command.Config, command.main)
