"""Evaluate a checkpoint and write the metrics with their protocol; the same as ``ovd test``.

python tools/test.py configs/vild_shapes.py work_dirs/vild_shapes/latest.pth [--out metrics.json]
    [--vocabulary SPEC] [--shuffle-text] [--dump predictions.json] [--cfg-options KEY=VALUE ...]
    [--launcher pytorch|slurm]
"""

import sys

from ovd.cli.console import run_tool
from ovd.cli.verbs.runs.testing import main

if __name__ == '__main__':
    sys.exit(run_tool(main))
