"""LSeg against stored outputs of the released code: head, whole nets, losses, gradients.

The stored weights go through ``convert_lseg`` and must fill the model completely, so the key map is tested
too.
"""

from pathlib import Path
from typing import Any

import pytest
import torch
from mmengine.registry import init_default_scope
from mmengine.structures import PixelData
from mmseg.structures import SegDataSample
from safetensors.torch import load_file

from ovd.checkpoints.loading import load_into
from ovd.conversion.lseg import convert_lseg
from ovd.encoders.text_embeddings import TextEmbeddings
from ovd.layers.score_maps import materialize, resized
from ovd.models.lseg.pixel_text import PixelTextScores, SpatialRegularization
from ovd.models.lseg.segmentor import LSeg
from ovd.registry import MODELS
from ovd.text.vocabulary import Vocabulary
from tests.helpers import shared_path
from tests.toys.lseg import model_config

EXACT = 5e-5
HALF = 1e-2


def golden(name: str) -> dict[str, dict[str, torch.Tensor]]:
    path: Path = shared_path(f'goldens/lseg/{name}.safetensors')
    groups: dict[str, dict[str, torch.Tensor]] = {}
    for key, value in load_file(path).items():
        group, _, rest = key.partition('/')
        groups.setdefault(group, {})[rest] = value
    return groups


def unit(text: torch.Tensor, half: bool = False) -> torch.Tensor:
    """Class vectors of unit length, rounded as the released code does on a GPU if ``half``."""
    text = text.half() if half else text
    return (text / text.norm(dim=-1, keepdim=True)).float()


def close(ours: torch.Tensor, theirs: torch.Tensor, tolerance: float = EXACT) -> None:
    torch.testing.assert_close(ours, theirs, atol=tolerance, rtol=0)


def words(text: torch.Tensor) -> TextEmbeddings:
    return TextEmbeddings(unit(text), Vocabulary([f'label {i}' for i in range(len(text))]), (), '')


def build(state: dict[str, torch.Tensor], text: torch.Tensor, **changes: Any) -> LSeg:
    init_default_scope('mmseg')
    model = MODELS.build(model_config(**changes)).eval()
    converted = convert_lseg(state)
    assert not converted.unmatched
    assert load_into(model, converted.tensors).is_complete
    model.set_vocabulary(words(text))
    return model


HEAD = {'embed_dim': 512, 'regularization': {'kind': 'bottleneck', 'depth': 2, 'activation': 'lrelu'}}


def samples(labels: torch.Tensor, **meta: list[Any]) -> list[SegDataSample]:
    made = []
    for index, label in enumerate(labels):
        sample = SegDataSample(metainfo={key: values[index] for key, values in meta.items()})
        sample.gt_sem_seg = PixelData(data=label[None])
        made.append(sample)
    return made


@pytest.mark.parametrize('half', [False, True])
def test_correlation(half: bool) -> None:
    data = golden('head_a')
    scores = PixelTextScores(
        torch.nn.functional.normalize(data['in']['features'], dim=1),
        unit(data['in']['text'], half),
        float(data['in']['logit_scale']),
        half=half,
    )
    close(materialize(scores), data['out']['corr_half' if half else 'corr'], 2e-3 if half else EXACT)


@pytest.mark.parametrize('half', [False, True])
@pytest.mark.parametrize('depth', [0, 1, 2, 4])
def test_regularization_block(depth: int, half: bool) -> None:
    data = golden('head_a')
    block = SpatialRegularization('bottleneck', depth, 'lrelu')
    prefix = 'scratch.head_block.depthwise.depthwise.'
    block.conv.load_state_dict({name: data['state'][prefix + name] for name in ('weight', 'bias')})
    ending = '_half' if half else ''
    with torch.no_grad():
        smooth = block(data['out'][f'corr{ending}'])
    close(smooth, data['out'][f'block_depth{depth}{ending}'])


@torch.no_grad()
def test_lazy_head_up_to_the_logits_and_permuted_labels() -> None:
    data = golden('head_a')
    block = SpatialRegularization('bottleneck', 2, 'lrelu')
    prefix = 'scratch.head_block.depthwise.depthwise.'
    block.conv.load_state_dict({name: data['state'][prefix + name] for name in ('weight', 'bias')})
    pixels = torch.nn.functional.normalize(data['in']['features'], dim=1)
    for name, order in (('final_depth2', slice(None)), ('permuted_final_depth2', data['out']['perm'])):
        text = unit(data['in']['text'])[order]
        scores = PixelTextScores(pixels, text, float(data['in']['logit_scale']), block, max_elements=70)
        close(materialize(resized(scores, (10, 14), True), max_elements=100), data['out'][name])


@torch.no_grad()
def test_every_stage_of_the_network() -> None:
    data = golden('net_a')
    model = build(data['state'], data['in']['text'], head=HEAD)
    stages = data['mid']
    backbone, neck = model.backbone, model.neck
    tokens, grid = backbone.vit(data['in']['image'], backbone.hooks)
    assert grid == (4, 6)
    table = backbone.vit.position_table(backbone.vit.pos_embed, grid, 1)
    close(table, stages['pos_embed_resized'])
    for index, level in enumerate(tokens):
        close(level, stages[f'vit_block{index}'])
    levels = backbone(data['in']['image'])
    fused = None
    for index in (3, 2, 1, 0):
        close(levels[index], stages[f'reassemble{index + 1}'])
        fused = neck.fusion[index](neck.lateral[index](levels[index]), fused)
        close(fused, stages[f'path{index + 1}'])
    close(materialize(model.score_maps(data['in']['image'])), stages['logits_low'])


@torch.no_grad()
def test_network_with_its_own_and_with_new_labels() -> None:
    data = golden('net_a')
    model = build(data['state'], data['in']['text'], head=HEAD)
    close(model(data['in']['image']), data['out']['logits'])
    model.set_vocabulary(words(data['in']['text_newlabels']))
    close(model(data['in']['image']), data['out']['logits_newlabels'])


@torch.no_grad()
def test_network_with_half_precision_correlation() -> None:
    data = golden('net_a')
    model = build(data['state'], data['in']['text'], head={**HEAD, 'half': True})
    close(model(data['in']['image']), data['out']['logits_half'], HALF)


@pytest.mark.parametrize('loss_elements', [1 << 26, 2000, 1])
def test_loss_and_gradients(loss_elements: int) -> None:
    data = golden('net_a')
    model = build(data['state'], data['in']['text'], head=HEAD, loss_elements=loss_elements)
    loss = model.loss(data['in']['image'], samples(data['in']['labels']))['loss_seg']
    close(loss, data['out']['loss'])
    loss.backward()
    parameters = dict(model.named_parameters())
    converted = convert_lseg(data['state']).tensors
    for key, theirs in data['grad'].items():
        (name,) = [name for name, value in converted.items() if value is data['state'][key]]
        scale = theirs.abs().max()
        close(parameters[name].grad / scale, theirs / scale, 2e-5)


def zero_shot() -> tuple[dict[str, dict[str, torch.Tensor]], LSeg]:
    """The zero-shot net; 'others' is the first vector of the pairs, the classes are the second ones."""
    data = golden('zs_vit_a')
    pairs = data['in']['text_pairs']
    assert torch.equal(pairs[:, 0], pairs[:1, 0].expand(len(pairs), -1))
    text = torch.cat([pairs[:, 1], pairs[:1, 0]])
    model = build(data['state'], text, head={'embed_dim': 512}, pair_with=f'label {len(pairs)}')
    return data, model


@torch.no_grad()
def test_zero_shot_network_asks_each_image_for_its_own_pair() -> None:
    data, model = zero_shot()
    image, index = data['in']['image'], data['in']['class_index'].tolist()
    asked = samples(data['in']['mask'], class_id=index, ori_shape=[tuple(image.shape[2:])] * 2)
    context = model.image_context(image, asked)
    close(materialize(model.score_maps(image, context)), data['mid']['logits_low'])
    scores = model.inference_scores(image, asked)
    close(torch.cat([materialize(score) for score in scores]), data['out']['logits'])
    found = model.predict(image, asked)
    for sample, logits in zip(found, data['out']['logits']):
        assert torch.equal(sample.pred_sem_seg.data[0], logits.argmax(0))


def test_zero_shot_loss() -> None:
    data, model = zero_shot()
    asked = samples(data['in']['mask'], class_id=data['in']['class_index'].tolist())
    close(model.loss(data['in']['image'], asked)['loss_seg'].detach(), data['out']['loss'])


@torch.no_grad()
def test_multi_scale_evaluator() -> None:
    data = golden('multiscale_a')
    given = data['in']
    test_cfg = {
        'mode': 'lseg',
        'base_size': int(given['base_size']),
        'crop_size': int(given['crop_size']),
        'scales': [round(float(scale), 4) for scale in given['scales']],
        'flip': bool(given['flip']),
    }
    model = build(data['state'], given['text'], head={'embed_dim': 512}, test_cfg=test_cfg)
    asked = samples(torch.zeros(1, 60, 90), ori_shape=[(60, 90)])
    (scores,) = model.inference_scores(given['image'], asked)
    close(materialize(scores), data['out']['scores'], 1e-3)
