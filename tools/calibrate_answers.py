"""Find the thresholds at which a model's answers are mostly right; the same as ``ovd calibrate``.

python tools/calibrate_answers.py configs/vild_shapes.py work_dirs/vild_shapes/latest.pth
    --annotations data/shapes/annotations/instances_val.json --images data/shapes/val
"""

import sys

from ovd.cli.console import run_tool
from ovd.cli.verbs.runs.calibrating import main

if __name__ == '__main__':
    sys.exit(run_tool(main))
