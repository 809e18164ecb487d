"""Train the model of a config; the same as ``ovd train``.

python tools/train.py configs/vild_shapes.py [--work-dir DIR] [--resume [CHECKPOINT]] [--amp] [--seed N]
    [--cfg-options KEY=VALUE ...] [--launcher pytorch|slurm]
"""

import sys

from ovd.cli.console import run_tool
from ovd.cli.verbs.runs.training import main

if __name__ == '__main__':
    sys.exit(run_tool(main))
