"""mmdet's own GLIP, helped over what newer versions of transformers dropped, with random weights."""

import importlib
from functools import lru_cache
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from torch import nn


def build_peer(folder: Path, deep: bool, names_per_prompt: int, max_per_prompt: int, seed: int = 0) -> Any:
    """mmdet's GLIP-T as its configuration for LVIS builds it, in eval mode.

    Args:
        folder: configuration and tokenizer of its BERT, whose weights are drawn too.
        deep: GLIP-T (B), else (A).
        names_per_prompt, max_per_prompt: the cut of class lists, and the boxes that each part may give.
    """
    import mmdet
    import transformers
    from mmdet.models.language_models import bert
    from mmengine.config import Config
    from mmengine.registry import MODELS, DefaultScope

    mend()
    kind = 'bc' if deep else 'a'
    path = Path(mmdet.__file__).parent / '.mim' / 'configs' / 'glip' / 'lvis'
    config = Config.fromfile(path / f'glip_atss_swin-t_{kind}_fpn_dyhead_pretrain_zeroshot_lvis.py').model
    config.backbone.init_cfg = None
    config.language_model.name = config.bbox_head.lang_model_name = str(folder)
    config.test_cfg.update(chunked_size=names_per_prompt, max_per_img=max_per_prompt)
    torch.manual_seed(seed)

    def draw(name: str, add_pooling_layer: bool, config: Any) -> nn.Module:
        return transformers.BertModel(config, add_pooling_layer=add_pooling_layer)

    with (
        mock.patch.object(bert.HFBertModel, 'from_pretrained', draw),
        DefaultScope.overwrite_default_scope('mmdet'),
    ):
        peer: Any = MODELS.build(config)
    mend_tokenizer(peer)
    return peer.eval()


def mend() -> None:
    """Give the peer the parts that it misses with this version of transformers; nothing where none are."""
    from mmdet.models.dense_heads import atss_vlfusion_head

    if not issubclass(atss_vlfusion_head.BertEncoderLayer, nn.Module):
        parts = mended_parts()
        atss_vlfusion_head.BertEncoderLayer = parts.BertEncoderLayer
        atss_vlfusion_head.VLFuse = parts.VLFuse


@lru_cache
def mended_parts() -> Any:
    """The peer's fusion module, imported again where its import of transformers had failed.

    Plumbing only: an import, the additive mask, and how the attention module calls its two halves.
    """
    from mmdet.models.utils import vlfuse_helper
    from transformers import modeling_utils, pytorch_utils

    with mock.patch.object(
        modeling_utils, 'apply_chunking_to_forward', pytorch_utils.apply_chunking_to_forward, create=True
    ):
        parts: Any = importlib.reload(vlfuse_helper)
    parts.BertAttention.forward = lambda self, hidden, mask, *_, **__: (
        self.output(self.self(hidden, mask)[0], hidden),
    )
    parts.BertEncoderLayer.get_extended_attention_mask = lambda self, mask, *_: (
        (1.0 - mask[:, None, None, :].float()) * torch.finfo(torch.float32).min
    )
    return parts


def mend_tokenizer(peer: Any) -> None:
    """Give the peer's tokenizer the method that it is called by."""
    tokenizer = peer.language_model.tokenizer
    if not hasattr(tokenizer, 'batch_encode_plus'):
        tokenizer.batch_encode_plus = tokenizer.__call__
