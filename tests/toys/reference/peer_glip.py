"""mmdet's own GLIP at toy width, helped over what newer versions of transformers dropped."""

import sys
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from mmdet.models.dense_heads import atss_vlfusion_head
from mmengine.config import ConfigDict
from mmengine.registry import MODELS
from torch import nn

from tests.helpers import ROOT
from tests.toys.glip import MEAN, STD

sys.path.insert(0, str(ROOT / 'benchmarks'))
try:
    import mmdet_glip
finally:
    sys.path.remove(str(ROOT / 'benchmarks'))


def toy_peer(
    folder: Path, monkeypatch: pytest.MonkeyPatch, deep: bool, backbone: dict, neck: dict, **test_cfg: Any
) -> nn.Module:
    """The peer of ``toy_glip``; ``folder`` receives random weights of its BERT."""
    _help_over_missing_parts(monkeypatch)
    config = transformers.BertConfig.from_pretrained(str(folder))
    torch.manual_seed(5)
    transformers.BertModel(config, add_pooling_layer=False).save_pretrained(folder)
    fuse = partial(atss_vlfusion_head.VLFuse, v_dim=32, l_dim=config.hidden_size, embed_dim=32, num_heads=4)
    monkeypatch.setattr(atss_vlfusion_head, 'VLFuse', fuse)
    model = MODELS.build(
        ConfigDict(
            {
                'type': 'mmdet.GLIP',
                'data_preprocessor': {
                    'type': 'mmdet.DetDataPreprocessor',
                    'mean': MEAN,
                    'std': STD,
                    'bgr_to_rgb': False,
                    'pad_size_divisor': 32,
                },
                'backbone': backbone,
                'neck': neck,
                'bbox_head': {
                    'type': 'mmdet.ATSSVLFusionHead',
                    'lang_model_name': str(folder),
                    'early_fuse': deep,
                    'num_dyhead_blocks': 2,
                    'num_classes': 80,
                    'in_channels': 32,
                    'feat_channels': 32,
                    'anchor_generator': {
                        'type': 'mmdet.AnchorGenerator',
                        'ratios': [1.0],
                        'octave_base_scale': 8,
                        'scales_per_octave': 1,
                        'strides': [8, 16, 32, 64, 128],
                        'center_offset': 0.5,
                    },
                    'bbox_coder': {
                        'type': 'mmdet.DeltaXYWHBBoxCoderForGLIP',
                        'target_means': [0.0] * 4,
                        'target_stds': [0.1, 0.1, 0.2, 0.2],
                    },
                },
                'language_model': {'type': 'mmdet.BertModel', 'name': str(folder)},
                'train_cfg': {'assigner': {'type': 'mmdet.ATSSAssigner', 'topk': 9}, 'pos_weight': -1},
                'test_cfg': {
                    'nms_pre': 1000,
                    'min_bbox_size': 0,
                    'score_thr': 0.05,
                    'nms': {'type': 'nms', 'iou_threshold': 0.6},
                    'max_per_img': 100,
                }
                | test_cfg,
            }
        )
    )
    mmdet_glip.mend_tokenizer(model)
    return model.eval()  # type: ignore[no-any-return]


def _help_over_missing_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    """As the benchmark does, undone after the test."""
    if not issubclass(atss_vlfusion_head.BertEncoderLayer, nn.Module):
        parts = mmdet_glip.mended_parts()
        monkeypatch.setattr(atss_vlfusion_head, 'BertEncoderLayer', parts.BertEncoderLayer)
        monkeypatch.setattr(atss_vlfusion_head, 'VLFuse', parts.VLFuse)
