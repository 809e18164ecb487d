"""Turn words into a file of class vectors; the same as ``ovd vocab``.

python tools/build_text_embeddings.py --vocabulary coco_ov --templates vild63 \\
    --model ViT-B-32-quickgelu --pretrained clip.safetensors --out coco_ov.vocab.safetensors
"""

import sys

from ovd.cli.console import run_tool
from ovd.cli.verbs.weights.vocab import main

if __name__ == '__main__':
    sys.exit(run_tool(main))
