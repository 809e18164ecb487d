"""An LSeg of toy width, class vectors without a text tower, and batches drawn from a seed."""

from collections.abc import Sequence
from typing import Any

import torch
from mmengine.config import ConfigDict
from mmengine.registry import init_default_scope
from mmengine.structures import PixelData
from mmseg.structures import SegDataSample

from ovd.encoders.text_embeddings import TextEmbeddings
from ovd.models.lseg.segmentor import LSeg
from ovd.registry import MODELS
from ovd.text.vocabulary import Vocabulary

DIM = 8
NAMES = ('cat', 'dog', 'grass', 'sky', 'road')
CHANNELS = (8, 16, 24, 32)
SIZE = (64, 96)


def words(names: Sequence[str] = NAMES, novel: Sequence[str] = (), dim: int = DIM) -> TextEmbeddings:
    """Class vectors that depend on the names alone."""
    rows = [torch.randn(dim, generator=torch.Generator().manual_seed(sum(name.encode()))) for name in names]
    vectors = torch.nn.functional.normalize(torch.stack(rows), dim=-1)
    return TextEmbeddings(vectors, Vocabulary(names, novel=novel), ('{}',), '')


def vit(patch: int = 16, width: int = 32, depth: int = 4, heads: int = 4, side: int = 4) -> dict[str, Any]:
    """A ViT of timm whose position table was made for a grid of ``side`` x ``side`` patches."""
    options = {
        'patch_size': patch,
        'embed_dim': width,
        'depth': depth,
        'num_heads': heads,
        'img_size': patch * side,
    }
    return {'type': 'ovd.TimmViT', 'model': 'vit_base_patch16_224', 'options': options}


def model_config(head: dict[str, Any] | None = None, **options: Any) -> ConfigDict:
    """ViT of four blocks, patch 16, decoder of width 16."""
    config = {
        'type': 'ovd.LSeg',
        'data_preprocessor': {
            'type': 'SegDataPreProcessor',
            'mean': [127.5] * 3,
            'std': [127.5] * 3,
            'bgr_to_rgb': True,
            'size_divisor': 1,
            'pad_val': -1,
            'seg_pad_val': -1,
        },
        'backbone': {'type': 'ovd.DPTViT', 'vit': vit(), 'hooks': (0, 1, 2, 3), 'channels': CHANNELS},
        'neck': {
            'type': 'ovd.DPTFusion',
            'in_channels': CHANNELS,
            'out_channels': 16,
            'norm_cfg': {'type': 'BN'},
        },
        'head': {'in_channels': 16, 'embed_dim': DIM, **(head or {})},
    }
    return ConfigDict({**config, **options})


def segmentor(head: dict[str, Any] | None = None, text: TextEmbeddings | None = None, **options: Any) -> LSeg:
    """A segmentor with random weights that knows ``words()``."""
    init_default_scope('mmseg')
    torch.manual_seed(3)
    model = MODELS.build(model_config(head, **options))
    model.set_vocabulary(words() if text is None else text)
    return model


def batch(
    count: int = 2, size: tuple[int, int] = SIZE, classes: int = len(NAMES), pairs: bool = False
) -> dict[str, Any]:
    """What the loader gives: pictures, labels in rectangles, some ignored; ``pairs`` adds class_id."""
    inputs, samples = [], []
    for index in range(count):
        random = torch.Generator().manual_seed(index)
        inputs.append(torch.randint(0, 256, (3, *size), generator=random, dtype=torch.uint8))
        coarse = torch.randint(-1, 2 if pairs else classes, (4, 4), generator=random)
        labels = coarse.repeat_interleave(-(-size[0] // 4), 0).repeat_interleave(-(-size[1] // 4), 1)
        meta = {'img_path': f'{index}.jpg', 'ori_shape': size, 'img_shape': size}
        if pairs:
            meta['class_id'] = index % classes
        sample = SegDataSample(metainfo=meta)
        sample.gt_sem_seg = PixelData(data=labels[None, : size[0], : size[1]])
        samples.append(sample)
    return {'inputs': inputs, 'data_samples': samples}


def losses_of(model: LSeg, data: dict[str, Any]) -> dict[str, torch.Tensor]:
    """Losses of a batch as the training loop computes them."""
    return model(**model.data_preprocessor(data, True), mode='loss')


def predictions_of(model: LSeg, data: dict[str, Any]) -> list[SegDataSample]:
    """Samples with predictions, as the test loop makes them."""
    model.eval()
    with torch.no_grad():
        return model(**model.data_preprocessor(data, False), mode='predict')
