"""GLIP at toy width: a small ResNet, a toy BERT, a tower of two blocks."""

from pathlib import Path
from typing import Any

import torch
from mmdet.structures import DetDataSample
from mmdet.utils import register_all_modules
from mmengine.config import Config
from mmengine.structures import InstanceData
from torch import Tensor

from ovd.models.glip.detector import GLIP
from ovd.registry import MODELS
from tests.toys.bert import write_bert

WORDS = ['red star', 'ring', 'dog', 'cart', 'car']
MEAN, STD = (103.53, 116.28, 123.675), (57.375, 57.12, 58.395)


def toy_config(folder: Path, deep: bool = True, **changes: Any) -> dict[str, Any]:
    """The configuration of a GLIP whose BERT lies in ``folder``."""
    if not (folder / 'vocab.txt').exists():
        write_bert(folder)
    fusion = {'embed_dims': 32, 'num_heads': 4} if deep else None
    return {
        'type': 'ovd.GLIP',
        'data_preprocessor': {
            'type': 'mmdet.DetDataPreprocessor',
            'mean': MEAN,
            'std': STD,
            'bgr_to_rgb': False,
            'pad_size_divisor': 32,
        },
        'backbone': {
            'type': 'mmdet.ResNet',
            'depth': 18,
            'base_channels': 8,
            'out_indices': (1, 2, 3),
            'norm_cfg': {'type': 'BN'},
        },
        'neck': {
            'type': 'mmdet.FPN',
            'in_channels': [16, 32, 64],
            'out_channels': 32,
            'start_level': 0,
            'add_extra_convs': 'on_output',
            'relu_before_extra_convs': True,
            'num_outs': 5,
        },
        'bbox_head': {
            'channels': 32,
            'num_blocks': 2,
            'fusion': fusion,
            'text_layer': {'num_heads': 4, 'hidden_channels': 48},
        },
        'text': {'encoder': {'model': str(folder)}, 'vocabulary': WORDS},
    } | changes


def toy_glip(folder: Path, deep: bool = True, **changes: Any) -> GLIP:
    """Seeded random weights that spread the scores, in eval mode."""
    register_all_modules(init_default_scope=False)
    torch.manual_seed(0)
    model = MODELS.build(toy_config(folder, deep, **changes))
    spread(model)
    model.eval()
    return model  # type: ignore[no-any-return]


def slim(config: Config, folder: Path) -> Config:
    """The wiring of a shipped config with thin layers; every option of it stays."""
    model = config.model
    if model.backbone.type == 'SwinTransformer':
        model.backbone.update(
            embed_dims=12, depths=[1, 1, 1, 1], num_heads=[1, 2, 3, 4], window_size=7, init_cfg=None
        )
        model.neck.update(in_channels=[24, 48, 96], out_channels=32)
        model.bbox_head.update(channels=32, num_blocks=2)
        model.text.encoder.update(model=str(write_bert(folder)), pretrained=False)
        if model.bbox_head.get('fusion'):
            model.bbox_head.fusion.update(embed_dims=32, num_heads=4)
            model.bbox_head.text_layer.update(num_heads=4, hidden_channels=48)
    return config


def spread(model: torch.nn.Module) -> None:
    """Weights that are not tiny: scores differ from place to place, shifts and boxes are not zero."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name, parameter in model.bbox_head.named_parameters():
            if parameter.dim() > 1 and any(part in name for part in ('dyhead', 'boxes', 'centerness')):
                width = parameter[0].numel()
                parameter.copy_(torch.randn(parameter.shape, generator=generator) / width**0.5)
        model.bbox_head.bias.fill_(-1.0)
        model.bbox_head.bias_text.copy_(torch.randn(model.bbox_head.bias_text.shape, generator=generator))


def images(shapes: list[tuple[int, int]], seed: int = 0) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randint(0, 256, (3, *shape), generator=generator, dtype=torch.uint8) for shape in shapes]


def batch(pictures: list[Tensor], **metainfo: Any) -> dict[str, Any]:
    """Model inputs; each value of ``metainfo`` is a list with an entry per image, None where it has none."""
    samples = []
    for index, picture in enumerate(pictures):
        shape = tuple(picture.shape[1:])
        known = {key: values[index] for key, values in metainfo.items() if values[index] is not None}
        samples.append(
            DetDataSample(
                metainfo={'img_shape': shape, 'ori_shape': shape, 'scale_factor': (1.0, 1.0), **known}
            )
        )
    return {'inputs': pictures, 'data_samples': samples}


def add_truth(
    data: dict[str, Any], boxes: list[list[list[float]]], labels: list[list[int]]
) -> dict[str, Any]:
    for sample, own_boxes, own_labels in zip(data['data_samples'], boxes, labels):
        sample.gt_instances = InstanceData(
            bboxes=torch.tensor(own_boxes, dtype=torch.float32).reshape(-1, 4),
            labels=torch.tensor(own_labels, dtype=torch.long),
        )
    return data
