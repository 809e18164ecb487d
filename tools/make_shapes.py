"""Draw OV-Shapes, pictures with boxes, masks, captions and phrases; the same as ``ovd data shapes``.

python tools/make_shapes.py --out data/shapes
"""

import sys

from ovd.cli.console import run_tool
from ovd.cli.verbs.data.shapes import shapes as main

if __name__ == '__main__':
    sys.exit(run_tool(main))
