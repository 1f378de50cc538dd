"""``python -m testbed``: the commands of this package without the agents."""

from cnn.common.console import run_app
from testbed.cli.app import app

if __name__ == "__main__":
    run_app(app, prog_name="python -m testbed")
