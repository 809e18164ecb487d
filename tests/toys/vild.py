"""A ViLD detector of toy width, words without a text tower, and batches drawn from a seed."""

from typing import Any

import torch
from mmdet.structures import DetDataSample
from mmdet.structures.mask import BitmapMasks
from mmengine.config import ConfigDict
from mmengine.registry import init_default_scope
from mmengine.structures import InstanceData

from ovd.encoders.text_embeddings import TextEmbeddings
from ovd.models.vild.detector import ViLD
from ovd.registry import MODELS
from ovd.text.vocabulary import Vocabulary

DIM = 8
NAMES = ('cat', 'dog', 'bird', 'fish')
NOVEL = ('bird', 'fish')


def words(names: tuple[str, ...] = NAMES, novel: tuple[str, ...] = NOVEL, source: str = '') -> TextEmbeddings:
    """Class vectors that depend on the names alone."""
    rows = [torch.randn(DIM, generator=torch.Generator().manual_seed(sum(name.encode()))) for name in names]
    vectors = torch.nn.functional.normalize(torch.stack(rows), dim=-1)
    return TextEmbeddings(vectors, Vocabulary(names, novel=novel), ('a {}',), source)


def model_config(mode: str = 'vild', mask: bool = True, **roi_options: Any) -> ConfigDict:
    """Slim ResNet-18, group normalisation in the head so that pictures do not influence each other there."""
    head = {
        'type': 'ovd.ViLDBBoxHead',
        'mode': mode,
        'in_channels': 16,
        'roi_feat_size': 3,
        'trunk': {
            'num_convs': 1,
            'conv_channels': 16,
            'num_fcs': 1,
            'fc_channels': 32,
            'norm_cfg': {'type': 'GN', 'num_groups': 4},
        },
        'embed_dim': DIM,
        'temperature': 0.05,
        'bbox_coder': {'type': 'DeltaXYWHBBoxCoder', 'target_stds': [0.1, 0.1, 0.2, 0.2]},
    }
    roi_head = dict(
        type='ovd.ViLDRoIHead',
        bbox_roi_extractor=_extractor(3),
        bbox_head=head,
        **roi_options,
    )
    if mask:
        roi_head['mask_roi_extractor'] = _extractor(4)
        roi_head['mask_head'] = {
            'type': 'FCNMaskHead',
            'class_agnostic': True,
            'num_convs': 1,
            'in_channels': 16,
            'conv_out_channels': 8,
            'num_classes': 1,
        }
    assigner = {'type': 'MaxIoUAssigner', 'pos_iou_thr': 0.5, 'neg_iou_thr': 0.5, 'min_pos_iou': 0.3}
    test_rpn = {
        'nms_pre': 50,
        'max_per_img': 20,
        'nms': {'type': 'nms', 'iou_threshold': 0.7},
        'min_bbox_size': 0,
    }
    return ConfigDict(
        type='ovd.ViLD',
        data_preprocessor={
            'type': 'DetDataPreprocessor',
            'mean': [127.5] * 3,
            'std': [64.0] * 3,
            'bgr_to_rgb': True,
            'pad_size_divisor': 32,
            'pad_mask': True,
        },
        backbone={
            'type': 'ResNet',
            'depth': 18,
            'num_stages': 3,
            'strides': (1, 2, 2),
            'dilations': (1, 1, 1),
            'base_channels': 8,
            'stem_channels': 8,
            'out_indices': (1, 2),
            'norm_cfg': {'type': 'GN', 'num_groups': 4},
            'norm_eval': False,
        },
        neck={'type': 'FPN', 'in_channels': [16, 32], 'out_channels': 16, 'num_outs': 2},
        rpn_head={
            'type': 'RPNHead',
            'in_channels': 16,
            'feat_channels': 16,
            'anchor_generator': {
                'type': 'AnchorGenerator',
                'scales': [3],
                'ratios': [1.0],
                'strides': [8, 16],
            },
            'bbox_coder': {'type': 'DeltaXYWHBBoxCoder'},
            'loss_bbox': {'type': 'L1Loss'},
        },
        roi_head=roi_head,
        train_cfg={
            'rpn': {
                'assigner': assigner,
                'sampler': {
                    'type': 'ovd.RepeatableSampler',
                    'num': 32,
                    'pos_fraction': 0.5,
                    'add_gt_as_proposals': False,
                },
                'allowed_border': -1,
                'pos_weight': -1,
            },
            'rpn_proposal': test_rpn,
            'rcnn': {
                'assigner': assigner,
                'sampler': {
                    'type': 'ovd.RepeatableSampler',
                    'num': 16,
                    'pos_fraction': 0.4,
                    'add_gt_as_proposals': True,
                },
                'mask_size': 8,
                'pos_weight': -1,
            },
        },
        test_cfg={
            'rpn': test_rpn,
            'rcnn': {
                'score_thr': 0.0,
                'nms': {'type': 'nms', 'iou_threshold': 0.5},
                'max_per_img': 10,
                'mask_thr_binary': 0.5,
            },
        },
    )


def _extractor(size: int) -> dict[str, Any]:
    return {
        'type': 'SingleRoIExtractor',
        'roi_layer': {'type': 'RoIAlign', 'output_size': size, 'sampling_ratio': 1},
        'out_channels': 16,
        'featmap_strides': [8],
    }


def detector(mode: str = 'vild', mask: bool = True, **model_options: Any) -> ViLD:
    """A detector with random weights that knows ``words()``."""
    init_default_scope('mmdet')
    torch.manual_seed(3)
    config = model_config(mode, mask)
    config.update(model_options)
    model = MODELS.build(config)
    model.set_vocabulary(words())
    return model


def batch(
    count: int = 2, size: int = 64, regions: int = 3, objects: int = 2, first: int = 0
) -> dict[str, Any]:
    """What the loader gives: pictures, boxes of the base classes, masks, cached regions. Depends on
    ``first``."""
    inputs, samples = [], []
    for index in range(first, first + count):
        random = torch.Generator().manual_seed(index)
        inputs.append(torch.randint(0, 256, (3, size, size), generator=random, dtype=torch.uint8))
        sample = DetDataSample(
            metainfo={
                'img_id': index,
                'img_shape': (size, size),
                'ori_shape': (size, size),
                'scale_factor': (1.0, 1.0),
                'batch_input_shape': (size, size),
            }
        )
        boxes = _boxes(objects, size, random)
        masks = torch.zeros(objects, size, size, dtype=torch.uint8)
        for mask, (x1, y1, x2, y2) in zip(masks, boxes.int().tolist()):
            mask[y1:y2, x1:x2] = 1
        sample.gt_instances = InstanceData(
            bboxes=boxes,
            labels=torch.randint(0, 2, (objects,), generator=random),
            masks=BitmapMasks(masks.numpy(), size, size),
        )
        sample.gt_instances.set_metainfo({'draw_seed': index})
        sample.region_instances = InstanceData(
            metainfo={'encoder_fingerprint': 'tower'},
            bboxes=_boxes(regions, size, random),
            embeddings=torch.randn(regions, DIM, generator=random).half(),
            valid=torch.arange(regions) < regions - index % 2,
        )
        samples.append(sample)
    return {'inputs': inputs, 'data_samples': samples}


def _boxes(count: int, size: int, random: torch.Generator) -> torch.Tensor:
    corner = torch.rand(count, 2, generator=random) * size * 0.5
    side = 16 + torch.rand(count, 2, generator=random) * (size * 0.5 - 16)
    return torch.cat([corner, corner + side], dim=1)
