"""Tiny CLIPs: architectures that build in a tenth of a second, with random weights."""

import json
from pathlib import Path
from typing import Any

TEXT = {'context_length': 18, 'vocab_size': 49408, 'width': 32, 'heads': 2, 'layers': 2}
RESNET = {'layers': [1, 1, 1, 1], 'width': 16, 'image_size': 64}
VIT = {'layers': 2, 'width': 64, 'head_width': 32, 'patch_size': 16, 'image_size': 32}


def write_architecture(path: Path, **changes: Any) -> Path:
    """Write the JSON of a tiny CLIP with D = 24; ``text_cfg`` entries are merged, other keys replaced."""
    config: dict[str, Any] = {'embed_dim': 24, 'vision_cfg': RESNET, 'text_cfg': dict(TEXT)}
    config['text_cfg'].update(changes.pop('text_cfg', {}))
    config.update(changes)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(config))
    return path
