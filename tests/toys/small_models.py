"""The four systems at toy width as configs and checkpoints on disk, ready to answer."""

import json
from pathlib import Path
from typing import Any, NamedTuple

import torch
from mmengine.config import Config
from mmengine.registry import DefaultScope

from ovd.encoders.loading import build_clip, save_clip
from ovd.registry import MODELS
from tests.toys import glip as toy_glip
from tests.toys import groupvit as toy_groupvit
from tests.toys import lseg as toy_lseg
from tests.toys import vild as toy_vild
from tests.toys.clip import write_architecture

SYSTEMS = ('vild', 'lseg', 'groupvit', 'glip')
WORDS = ['red star', 'ring', 'dog']
META = ('img_id', 'img_path', 'ori_shape', 'img_shape', 'scale_factor', 'text', 'tokens_positive')


class SmallModel(NamedTuple):
    """Paths of a config and its checkpoint, and the weights in it."""

    config: Path
    checkpoint: Path
    tensors: dict[str, torch.Tensor]


def write_small_clip(folder: Path) -> Path:
    """A folder with a tiny CLIP, D = 24."""
    clip = build_clip(write_architecture(folder.parent / f'{folder.name}.json'), 'random:1')
    save_clip(folder, clip.model, clip.config)
    return folder


def write_small(system: str, folder: Path, clip: Path | None = None) -> SmallModel:
    """A model of a system with random weights; text encoders lie in ``folder`` too, unless ``clip`` is
    given."""
    folder.mkdir(parents=True, exist_ok=True)
    model = _SECTIONS[system](folder, clip)
    scope = 'mmdet' if system in ('vild', 'glip') else 'mmseg'
    with DefaultScope.overwrite_default_scope(scope):
        torch.manual_seed(5)
        net = MODELS.build(Config({'model': model}).model).eval()
        if system == 'glip':
            toy_glip.spread(net)
    steps: list[dict[str, Any]] = [{'type': 'ovd.LoadImage'}]
    if scope == 'mmdet':
        steps += [
            {'type': 'Resize', 'scale': (96, 64), 'keep_ratio': True},
            {'type': 'LoadAnnotations', 'with_bbox': True},
            {'type': 'PackDetInputs', 'meta_keys': META},
        ]
    else:
        steps += [
            {'type': 'Resize', 'scale': (96, 64), 'keep_ratio': True},
            {'type': 'ovd.LoadSegmentation'},
            {'type': 'PackSegInputs'},
        ]
    whole = {
        'default_scope': scope,
        'model': model,
        'test_dataloader': {'dataset': {'type': 'ovd.Unused', 'pipeline': steps}},
    }
    config, checkpoint = folder / f'{system}_small.py', folder / f'{system}_small.pth'
    Config(whole).dump(config)
    tensors = net.state_dict()
    torch.save({'state_dict': tensors}, checkpoint)
    return SmallModel(config, checkpoint, tensors)


def _clip(folder: Path, clip: Path | None) -> dict[str, str]:
    return {'model': str(clip or write_small_clip(folder / 'clip'))}


def _vild(folder: Path, clip: Path | None) -> dict[str, Any]:
    model = toy_vild.model_config('vild_ensemble').to_dict()
    model['roi_head']['bbox_head']['embed_dim'] = 24
    model['text'] = {'vocabulary': WORDS, 'templates': 'single', 'encoder': _clip(folder, clip)}
    return model


def _lseg(folder: Path, clip: Path | None) -> dict[str, Any]:
    text = {'vocabulary': WORDS, 'templates': 'single', 'encoder': _clip(folder, clip)}
    model = toy_lseg.model_config(head={'embed_dim': 24}, text=text).to_dict()
    return {**model, 'align_corners': False, 'test_cfg': {'mode': 'whole'}}


def _groupvit(folder: Path, clip: Path | None) -> dict[str, Any]:
    preprocessor = {
        'type': 'SegDataPreProcessor',
        'mean': [120.0] * 3,
        'std': [60.0] * 3,
        'bgr_to_rgb': True,
        'size_divisor': 8,
        'seg_pad_val': -1,
    }
    return toy_groupvit.toy_config(text={'vocabulary': WORDS}, data_preprocessor=preprocessor)


def _glip(folder: Path, clip: Path | None) -> dict[str, Any]:
    return toy_glip.toy_config(
        folder / 'bert',
        text={'encoder': {'model': str(folder / 'bert')}, 'vocabulary': WORDS},
        test_cfg={'score_thr': 0.0, 'max_per_img': 30},
    )


_SECTIONS = {'vild': _vild, 'lseg': _lseg, 'groupvit': _groupvit, 'glip': _glip}


def damage_json(path: Path, **changes: Any) -> None:
    """Change keys of a JSON file."""
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))
