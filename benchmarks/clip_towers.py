"""Which architectures of open_clip give dense features: try every name and write a table.

    python benchmarks/clip_towers.py [--out docs/models/clip_towers.md]

Towers are built without memory for their weights (torch's meta device), so size does not matter: what is
tried is whether the patches of an image of another size than the native one reach the joint space, and
whether the last attention can be exchanged. Weights are neither needed nor fetched.
"""

import argparse
import sys
from collections import defaultdict
from pathlib import Path
from typing import Any

import open_clip
import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from ovd.encoders.dense.attention import VARIANTS
from ovd.encoders.dense.patches import find_patch_tower

HEAD = """# Image towers of open_clip as dense towers

Made by `python benchmarks/clip_towers.py` with open_clip {version}: every architecture is built without
weights, and its patches are asked for at another size than the native one. `windows=dict(stride=...)` works
with every tower, those without patches included. {works} of {total} give patches, {exchanged} of these let
their last attention be exchanged.

| architectures | cell, pixels | attention | remark |
|---|---|---|---|
"""


def try_tower(name: str) -> tuple[str, str, str]:
    """(pixels per cell, attention, remark) of an architecture."""
    config = open_clip.get_model_config(name)
    try:
        with torch.device('meta'):
            visual = build_visual(config)
    except Exception as error:
        return '-', '-', f'cannot be built: {first_line(error)}'
    size = visual.image_size if isinstance(visual.image_size, int) else visual.image_size[0]
    try:
        tower = find_patch_tower(visual.eval())
    except ValueError as error:
        return '-', '-', f'windows only: {error}'
    names = ('plain', 'naclip') if tower.with_attention else ('plain',)
    cells = size // tower.stride + 2
    images = torch.zeros(1, 3, cells * tower.stride, (cells + 1) * tower.stride, device='meta')
    try:
        with torch.no_grad():
            shapes = {tuple(tower(images, VARIANTS[key]).shape[2:]) for key in names}
    except Exception as error:
        return str(tower.stride), '-', f'fails at {images.shape[2]} pixels: {first_line(error)}'
    if shapes != {(cells, cells + 1)}:
        return str(tower.stride), '-', f'gives {sorted(shapes)} cells, expected {(cells, cells + 1)}'
    return str(tower.stride), 'exchangeable' if tower.with_attention else 'plain', type(tower).__name__


def build_visual(config: dict[str, Any]) -> Any:
    """The image tower of an architecture."""
    vision = dict(config['vision_cfg'])
    if 'timm_model_name' in vision:
        vision['timm_model_pretrained'] = False
    return open_clip.model._build_vision_tower(
        config['embed_dim'], vision, quick_gelu=config.get('quick_gelu', False)
    )


def first_line(error: Exception) -> str:
    return f'{type(error).__name__}: {" ".join(str(error).split())[:110]}'.replace('|', '/')


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('--out', type=Path, default=Path('docs/models/clip_towers.md'))
    args = parser.parse_args()
    rows: dict[tuple[str, str, str], list[str]] = defaultdict(list)
    names = sorted(open_clip.list_models())
    for name in names:
        rows[try_tower(name)].append(name)
    works = [key for key in rows if key[1] != '-']
    counts = {
        'version': open_clip.__version__,
        'total': len(names),
        'works': sum(len(rows[key]) for key in works),
        'exchanged': sum(len(rows[key]) for key in works if key[1] == 'exchangeable'),
    }
    lines = [
        f'| {", ".join(found)} | {" | ".join(key)} |'
        for key, found in sorted(rows.items(), key=lambda item: (item[0][1] == '-', item[0][2], item[0][0]))
    ]
    args.out.parent.mkdir(parents=True, exist_ok=True)
    args.out.write_text(HEAD.format(**counts) + '\n'.join(lines) + '\n', encoding='utf-8')
    print(f'{counts["works"]} of {counts["total"]} architectures give patches; table in {args.out}')


if __name__ == '__main__':
    main()
