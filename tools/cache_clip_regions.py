"""Embed the region proposals of a data set with CLIP, once, into a store; the same as ``ovd cache make``.

python tools/cache_clip_regions.py configs/vild_shapes.py [--limit N] [--device cuda] [--cfg-options ...]
torchrun --nproc-per-node 8 tools/cache_clip_regions.py configs/vild_r50_lvis.py
"""

import sys

from ovd.cli.console import run_tool
from ovd.cli.verbs.data.cache_make import main

if __name__ == '__main__':
    sys.exit(run_tool(main))
