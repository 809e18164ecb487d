"""mmdet's own detectors train a step and predict on our operators, in full precision and under autocast."""

from pathlib import Path
from typing import Any

import mmdet
import pytest
import torch
from mmdet.testing import demo_mm_inputs
from mmdet.utils import register_all_modules
from mmengine.config import Config
from mmengine.registry import MODELS
from torch import Tensor, nn

CONFIGS = {
    'mask_rcnn': 'mask_rcnn/mask-rcnn_r50_fpn_1x_coco.py',
    'retinanet': 'retinanet/retinanet_r50_fpn_1x_coco.py',
    'atss_dyhead': 'dyhead/atss_r50_fpn_dyhead_1x_coco.py',
}
IMAGE_SHAPES = [(3, 64, 96), (3, 80, 64)]
CUDA = pytest.param(
    'cuda',
    marks=[pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason='needs a CUDA device')],
)


def build_detector(name: str, is_narrow: bool) -> nn.Module:
    """A stock detector with R50, seeded random weights instead of pretrained ones.

    The narrow one has an eighth of all widths and 20 proposals, as bfloat16 is slow on most CPUs.
    """
    register_all_modules()
    config = Config.fromfile(Path(mmdet.__file__).parent / '.mim' / 'configs' / CONFIGS[name])
    config.model.backbone.init_cfg = None
    if is_narrow:
        config.model.backbone.base_channels = 8
        divide_widths(config.model)
        for part in ('train_cfg', 'test_cfg'):
            if 'rpn' in config.model[part]:
                config.model[part].get('rpn_proposal', config.model[part].rpn).max_per_img = 20
    torch.manual_seed(0)
    return MODELS.build(config.model)


def divide_widths(config: Any) -> None:
    for key, value in config.items() if isinstance(config, dict) else enumerate(config):
        if key in ('in_channels', 'out_channels', 'feat_channels', 'conv_out_channels', 'fc_out_channels'):
            config[key] = [width // 8 for width in value] if isinstance(value, list) else value // 8
        elif isinstance(value, dict | list):
            divide_widths(value)


def inputs(with_mask: bool) -> dict[str, Any]:
    data = demo_mm_inputs(2, IMAGE_SHAPES, num_items=[3, 0], num_classes=80, with_mask=with_mask)
    return {'inputs': data['inputs'], 'data_samples': data['data_samples']}


@pytest.mark.parametrize('name', CONFIGS)
@pytest.mark.parametrize('with_autocast', [False, True], ids=['float32', 'bfloat16'])
@pytest.mark.parametrize('device', ['cpu', CUDA])
def test_a_stock_detector_trains_a_step_and_predicts(name: str, with_autocast: bool, device: str) -> None:
    detector = build_detector(name, is_narrow=with_autocast).to(device)
    optimizer = torch.optim.SGD(detector.parameters(), lr=1e-3)
    before = {key: value.clone() for key, value in detector.named_parameters()}

    detector.train()
    with torch.autocast(device, torch.bfloat16, enabled=with_autocast):
        batch = detector.data_preprocessor(inputs(name == 'mask_rcnn'), True)
        losses, _ = detector.parse_losses(detector(**batch, mode='loss'))
    losses.backward()
    assert losses.isfinite()
    assert_gradients(detector)
    optimizer.step()
    changed = {key for key, value in detector.named_parameters() if not torch.equal(value, before[key])}
    assert changed >= {key for key in before if 'bbox_head' in key and key.endswith('weight')}

    detector.eval()
    with torch.no_grad(), torch.autocast(device, torch.bfloat16, enabled=with_autocast):
        predictions = detector.test_step(inputs(False))
    assert len(predictions) == 2
    for sample, (_, height, width) in zip(predictions, IMAGE_SHAPES):
        found = sample.pred_instances
        assert found.bboxes.isfinite().all()
        assert within(found.bboxes, height, width)
        assert found.scores.shape == found.labels.shape == (len(found.bboxes),)
        if name == 'mask_rcnn':
            assert found.masks.shape == (len(found.bboxes), height, width)


def assert_gradients(detector: nn.Module) -> None:
    """Every trainable weight has a finite gradient, and each part of the detector a non-zero one."""
    moved = set()
    for key, parameter in detector.named_parameters():
        if parameter.requires_grad:
            assert parameter.grad is not None, key
            assert parameter.grad.isfinite().all(), key
            if parameter.grad.any():
                moved.add(key.split('.')[0])
    assert moved == {key.split('.')[0] for key, _ in detector.named_parameters()}


def within(boxes: Tensor, height: int, width: int) -> bool:
    return bool(
        (boxes >= -1e-3).all()
        and (boxes[:, ::2] <= width + 1e-3).all()
        and (boxes[:, 1::2] <= height + 1e-3).all()
    )
