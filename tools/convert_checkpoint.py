"""Turn a published checkpoint into one of ours, or the other way; the same as ``ovd convert``.

python tools/convert_checkpoint.py --from groupvit group_vit_gcc_yfcc_30e.pth groupvit.safetensors
"""

import sys

from ovd.cli.console import run_tool
from ovd.cli.verbs.weights.convert import main

if __name__ == '__main__':
    sys.exit(run_tool(main))
