"""Describe, verify or import region stores; the same as ``ovd cache info``, ``verify``, ``import-...``.

python tools/region_store.py info data/shapes/regions_train
"""

import sys

from ovd.cli.console import run_tool
from ovd.cli.verbs.data.stores import main

if __name__ == '__main__':
    sys.exit(run_tool(main))
