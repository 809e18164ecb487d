"""GLIPv2: what the three objectives add to GLIP, masks of detections, key layout, errors."""

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from mmdet.structures import DetDataSample
from mmdet.structures.mask import BitmapMasks
from mmengine.structures import InstanceData
from torch import Tensor

from ovd.conversion.glip import convert_glip, convert_glipv2
from ovd.datasets.grounding.training_prompts import NO_CLASS, build_training_prompt, class_ids
from ovd.datasets.grounding.transforms import PackNegativeCaptions, SampleClassNames
from ovd.models.glip.detector import GLIP
from ovd.models.glip.detector_v2 import GLIPv2
from ovd.models.glip.mask_head import MaskTargets, TextMaskHead
from tests.helpers import ROOT
from tests.toys.glip import WORDS, add_truth, batch, images, toy_config, toy_glip

pytest.importorskip('transformers')

SHAPES = [(64, 96), (80, 64)]
CAPTION = 'a red star above a big ring'
PARTS: dict[str, Any] = {
    'contrast': {'embed_dim': 8},
    'language': {'rate': 0.5},
    'masks': {'hidden_channels': 16, 'num_convs': 1, 'roi_size': 7},
}


@pytest.fixture(scope='module')
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp('glipv2') / 'bert'


def toy_glipv2(folder: Path, *parts: str, deep: bool = True, **changes: Any) -> GLIPv2:
    chosen = {part: PARTS[part] for part in parts or PARTS}
    return toy_glip(folder, deep, type='ovd.GLIPv2', **{**chosen, **changes})  # type: ignore[return-value]


def mixed_data(with_masks: bool = True) -> dict[str, Any]:
    """A class list with masks, a caption without, a list of names of an empty image."""
    data = batch(
        images([*SHAPES, SHAPES[0]]),
        text=[None, CAPTION, ('cat', 'dog')],
        tokens_positive=[None, {5: [[2, 10]]}, None],
    )
    boxes = [[[8, 8, 40, 40], [50, 10, 90, 60]], [[0, 0, 30, 70]], []]
    data = add_truth(data, boxes, [[0, 4], [5], []])
    if with_masks:
        pixels = np.zeros((2, *SHAPES[0]), np.uint8)
        pixels[0, 8:40, 8:24], pixels[1, 10:60, 50:90] = 1, 1
        data['data_samples'][0].gt_instances.masks = BitmapMasks(pixels, *SHAPES[0])
    return data


def losses_of(model: GLIP, data: dict[str, Any], seed: int = 0) -> dict[str, Tensor]:
    torch.manual_seed(seed)
    return model(**model.data_preprocessor(data, True), mode='loss')  # type: ignore[no-any-return]


def detect(model: GLIP, data: dict[str, Any]) -> list[DetDataSample]:
    with torch.no_grad():
        return model.test_step(data)  # type: ignore[no-any-return]


def test_without_its_parts_it_is_glip(folder: Path) -> None:
    glip, model = toy_glip(folder), toy_glip(folder, type='ovd.GLIPv2')
    assert isinstance(model, GLIPv2)
    assert glip.state_dict().keys() == model.state_dict().keys()
    plain, ours = losses_of(glip, mixed_data()), losses_of(model, mixed_data())
    assert plain == ours
    for one, other in zip(detect(glip, batch(images(SHAPES))), detect(model, batch(images(SHAPES)))):
        assert torch.equal(one.pred_instances.bboxes, other.pred_instances.bboxes)
        assert 'masks' not in other.pred_instances


@pytest.mark.parametrize('deep', [True, False], ids=['deep', 'shallow'])
@pytest.mark.parametrize('autocast', [False, True], ids=['float32', 'bfloat16'])
def test_all_objectives_train_in_one_batch(folder: Path, deep: bool, autocast: bool) -> None:
    model = toy_glipv2(folder, deep=deep).train()
    with torch.autocast('cpu', torch.bfloat16, enabled=autocast):
        losses = losses_of(model, mixed_data())
    names = ['cls', 'bbox', 'centerness', 'contrast', 'language', 'mask']
    assert list(losses) == [f'loss_{name}' for name in names]
    assert all(loss > 0 for loss in losses.values())
    sum(losses.values()).backward()
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            assert parameter.grad is not None, name
            assert parameter.grad.isfinite().all(), name


def test_a_batch_without_any_of_it_reaches_every_weight(folder: Path) -> None:
    """No boxes, no caption, no masks: distributed training needs all gradients even so."""
    model = toy_glipv2(folder).train()
    losses = losses_of(model, add_truth(batch(images(SHAPES)), [[], []], [[], []]))
    assert [losses[f'loss_{name}'].item() for name in ('contrast', 'language', 'mask')] == [0, 0, 0]
    sum(losses.values()).backward()
    assert [name for name, parameter in model.named_parameters() if parameter.grad is None] == []


def test_hidden_words_are_those_of_captions(folder: Path) -> None:
    model = toy_glipv2(folder, 'language', language={'rate': 1.0, 'mask_share': 1.0, 'random_share': 0.0})
    names = '. '.join(WORDS)
    samples = batch(
        images([SHAPES[0]] * 5),
        text=[None, CAPTION, ('cat', 'dog'), names, f'a dog. {CAPTION}.'],
        tokens_positive=[None, {5: [[2, 10]]}, None, {0: [[0, 8]]}, {0: [[9, 17]]}],
        caption_ranges=[None, None, None, [], [[7, 7 + len(CAPTION) + 1]]],
    )['data_samples']
    prompts = [model._training_prompt(sample, [])[0] for sample in samples]
    hidden = model._hide(prompts)
    assert hidden is not None
    tokenizer = model.text.tokenizer.fast
    shown = [tokenizer.convert_ids_to_tokens(row[mask]) for row, mask in zip(hidden.ids, hidden.ids != 0)]
    tokens = names.replace('cart', 'car ##t').replace('.', ' .').split()
    assert shown[0] == ['[CLS]', *tokens, '[SEP]']
    assert shown[3] == ['[CLS]', *tokens, '.', '[SEP]']
    assert shown[1] == ['[CLS]', *['[MASK]'] * 8, '[SEP]']
    assert shown[2] == ['[CLS]', 'cat', '.', 'dog', '[SEP]']
    assert shown[4] == ['[CLS]', 'a', 'dog', '.', *['[MASK]'] * 8, '[SEP]']
    words = tokenizer.convert_ids_to_tokens(hidden.labels[1][hidden.labels[1] >= 0])
    assert words == [*CAPTION.split(), '.']
    assert model.language is not None
    model.language.spare_phrases = True
    spared = model._hide(prompts[1:2])
    assert spared is not None
    left = tokenizer.convert_ids_to_tokens(spared.ids[0])
    assert left == ['[CLS]', '[MASK]', 'red', 'star', *['[MASK]'] * 5, '[SEP]']


def test_the_model_sees_the_text_with_its_words_hidden(folder: Path) -> None:
    everything = {'rate': 1.0, 'mask_share': 1.0, 'random_share': 0.0}
    model = toy_glipv2(folder, 'language', language=everything)
    hidden = losses_of(model, mixed_data())
    assert model.language is not None
    model.language.shares['rate'] = 0.0
    open_text = losses_of(model, mixed_data())
    assert hidden['loss_cls'] != open_text['loss_cls']
    assert open_text['loss_language'] == 0
    # Random weights know nothing: about the entropy of the vocabulary.
    assert hidden['loss_language'].item() == pytest.approx(math.log(model.text.tokenizer.vocab_size), rel=0.2)


def test_which_words_describe_the_image(folder: Path) -> None:
    """All of a caption, its own part among negatives, nothing of a list of names; only these have classes."""
    builder = toy_glipv2(folder)._builder

    def described(**metainfo: Any) -> tuple[str, bool]:
        ready, _ = build_training_prompt(builder, metainfo, [])
        chosen = [pair for pair, own in zip(ready.prompt.offsets, ready.describes_image) if own]
        words = ' '.join(ready.prompt.text[start:end] for start, end in chosen)
        return words, bool((ready.class_ids != NO_CLASS).any())

    assert described(text='a dog. a red star', caption_ranges=[[7, 17]]) == ('a red star', False)
    assert described(text='a dog, a dog', caption_ranges=[[7, 12]]) == ('a dog', False)
    assert described(text='a red star') == ('a red star .', False)
    assert described(text=WORDS[:2]) == ('', True)
    names = {'text': 'red star. ring', 'tokens_positive': {0: [[0, 8]]}, 'caption_ranges': []}
    assert described(**names) == ('', True)
    # A long text is read in windows; ranges are moved with them.
    torch.manual_seed(0)
    far = 'a dog and ' * 140
    ready, _ = build_training_prompt(
        builder,
        {
            'text': far + 'a red star',
            'tokens_positive': {0: [[1402, 1410]]},
            'caption_ranges': [[1400, 1410]],
        },
        [0],
    )
    assert ready.prompt.start > 0
    assert ready.describes_image.sum() == 3


def test_classes_have_one_number_everywhere() -> None:
    tokens = np.array([[False, True, True, False, False], [False, False, False, False, True]])
    one, other = class_ids(('traffic_light', 'Dog'), tokens), class_ids(('dog', 'traffic light'), tokens)
    assert one[0] == one[3] == NO_CLASS
    assert one[1] == one[2] == other[4]
    assert one[4] == other[1]
    assert one[1] != one[4]
    assert (one[[1, 4]] >= 0).all()


def test_contrast_pairs_equal_classes_of_two_images(folder: Path) -> None:
    """The same word in another image is a target if both are class lists, and a negative if not."""
    model = toy_glipv2(folder, 'contrast', contrast={'embed_dim': 8, 'fill': False})
    boxes = [[[8, 8, 40, 40]], [[10, 10, 50, 60]]]
    losses = {}
    for kind, ranges in (('lists', [[], []]), ('captions', [None, None])):
        data = batch(
            images(SHAPES),
            text=['dog. cat', 'cat. dog'],
            tokens_positive=[{0: [[0, 3]]}, {0: [[5, 8]]}],
            caption_ranges=ranges,
        )
        losses[kind] = losses_of(model, add_truth(data, boxes, [[0], [0]]))
    assert losses['lists']['loss_contrast'] != losses['captions']['loss_contrast']
    assert losses['lists']['loss_cls'] == losses['captions']['loss_cls']


def test_its_parts_can_be_trained_alone(folder: Path) -> None:
    model = toy_glipv2(folder, trainable=['mask_head.*', 'contrast.*']).train()
    names = {name.split('.')[0] for name, parameter in model.named_parameters() if parameter.requires_grad}
    assert names == {'mask_head', 'contrast'}
    assert model.mask_head is not None
    assert model.mask_head.training
    assert not model.backbone.training
    sum(losses_of(model, mixed_data()).values()).backward()
    assert all(parameter.grad is not None for parameter in model.parameters() if parameter.requires_grad)


# --- masks --------------------------------------------------------------------------------------------------


def mask_head(**changes: Any) -> TextMaskHead:
    torch.manual_seed(0)
    settings = {'hidden_channels': 6, 'num_convs': 1, 'roi_size': 4, 'strides': (8, 16), 'finest_scale': 28}
    head = TextMaskHead(4, 5, **{**settings, **changes})
    torch.nn.init.normal_(head.bias_text)
    return head


def test_a_pixel_is_the_mean_over_the_tokens_of_its_phrase() -> None:
    head = mask_head()
    with torch.no_grad():
        head.log_scale.fill_(0.3)
    tokens, token_map = torch.randn(7, 5), torch.zeros(3, 7, dtype=torch.bool)
    token_map[0, [1, 2, 5]], token_map[1, 3] = True, True
    vectors, biases = head.entity_vectors(tokens, token_map)
    pixels = torch.randn(6)
    for row in range(2):
        logits = []
        for token in tokens[token_map[row]]:
            unit = token / token.norm()
            projected = head.project_text(unit / 2)
            logits.append(pixels @ projected / math.exp(0.3) + unit @ head.bias_text)
        torch.testing.assert_close(pixels @ vectors[row] + biases[row], torch.stack(logits).mean())
    assert vectors[2].abs().sum() == 0
    assert biases[2] == 0


def toy_maps(count: int = 2) -> list[Tensor]:
    generator = torch.Generator().manual_seed(3)
    return [torch.randn(count, 4, 64 // s, 64 // s, generator=generator) for s in (8, 16, 32)]


def half_masks() -> MaskTargets:
    """Two boxes whose left halves are the objects."""
    boxes = torch.tensor([[0.0, 0.0, 32.0, 32.0], [32.0, 16.0, 64.0, 64.0]])
    pixels = np.zeros((2, 64, 64), np.uint8)
    pixels[0, 0:32, 0:16], pixels[1, 16:64, 32:48] = 1, 1
    tokens = torch.tensor([[False, True, False], [False, False, True]])
    return MaskTargets(boxes, tokens, BitmapMasks(pixels, 64, 64))


def test_loss_of_masks_by_hand() -> None:
    head = mask_head(weight=2.0)
    tokens = torch.randn(2, 3, 5)
    with torch.no_grad():
        head.project_text.weight.zero_()
        head.project_text.bias.zero_()
        head.bias_text.zero_()
    detections = [torch.zeros(0, 4), torch.zeros(0, 4)]
    loss = head.loss(toy_maps(), tokens, [half_masks(), None], detections)
    assert loss.item() == pytest.approx(2 * math.log(2))
    # Logit 1 everywhere, half of the pixels are set.
    with torch.no_grad():
        unit = torch.nn.functional.normalize(tokens[0, 1], dim=0)
        head.bias_text.copy_(unit)
    one = half_masks()
    one = MaskTargets(one.boxes[:1], one.tokens[:1], one.masks[[0]])
    loss = head.loss(toy_maps(), tokens, [one, None], detections)
    expected = (math.log(1 + math.exp(-1)) + math.log(1 + math.e)) / 2
    assert loss.item() == pytest.approx(2 * expected, abs=1e-5)


def test_gradients_of_the_mask_loss_are_exact() -> None:
    """Against finite differences, through regions, convolutions and words."""
    head = mask_head().double()
    maps = [level[:1].double().requires_grad_() for level in toy_maps()]
    tokens = torch.randn(1, 3, 5, dtype=torch.double, requires_grad=True)
    truth = half_masks()
    truth = truth._replace(boxes=truth.boxes.double())
    head.loss(maps, tokens, [truth], [torch.zeros(0, 4)]).backward()
    for leaf in (tokens, maps[0], head.project_text.weight, head.bias_text, head.log_scale):
        assert leaf.grad is not None
        flat = leaf.detach().view(-1)
        place = int(leaf.grad.abs().argmax())
        values = []
        for step in (1e-2, -2e-2):
            flat[place] += step
            with torch.no_grad():
                values.append(head.loss(maps, tokens, [truth], [torch.zeros(0, 4)]).item())
        flat[place] += 1e-2
        slope = (values[0] - values[1]) / 2e-2
        assert leaf.grad.view(-1)[place].item() == pytest.approx(slope, rel=2e-2, abs=1e-6)


def test_regions_are_detections_that_fit_and_true_boxes() -> None:
    head, boxes = mask_head(max_detections=3), half_masks().boxes
    found = torch.tensor([[1.0, 0, 32, 32], [0, 40, 20, 64], [32, 20, 64, 64], [0, 0, 32, 32]])
    regions, assigned = head.regions(found, boxes)
    assert assigned.tolist() == [0, 1, 0, 1]
    assert torch.equal(regions, torch.cat([found[[0, 2]], boxes]))
    assert head.regions(found, boxes[:0])[0].shape == (0, 4)
    assert head.regions(found[:0], boxes)[1].tolist() == [0, 1]


def test_pasted_masks_lie_in_their_boxes() -> None:
    head = mask_head()
    logits = torch.full((2, 8, 8), -5.0)
    logits[:, :, :4] = 5.0
    boxes = torch.tensor([[0.0, 0.0, 32.0, 32.0], [32.0, 16.0, 64.0, 64.0]])
    instances = InstanceData(bboxes=boxes, labels=torch.tensor([0, 3]), mask_logits=logits)
    sample = DetDataSample(
        metainfo={'ori_shape': (64, 64), 'img_shape': (128, 128), 'scale_factor': (2.0, 2.0)}
    )
    masks = head.paste(instances, sample, rescale=True)
    expected = torch.from_numpy(half_masks().masks.masks).bool()
    assert (masks ^ expected).float().mean() < 0.03
    assert head.paste(instances, sample, rescale=False).shape == (2, 128, 128)
    assert head.paste(instances[:0], sample, rescale=True).shape == (0, 64, 64)


@pytest.mark.parametrize('deep', [True, False], ids=['deep', 'shallow'])
def test_detections_come_with_masks(folder: Path, deep: bool) -> None:
    """For class lists, captions and nothing found; the same alone and beside other images."""
    model = toy_glipv2(folder, 'masks', deep=deep)
    data = batch(images(SHAPES), text=[None, CAPTION], tokens_positive=[None, [[[2, 10]]]])
    data['data_samples'][1].set_metainfo({'ori_shape': (40, 32), 'scale_factor': (2.0, 2.0)})
    both = detect(model, data)
    for sample, shape in zip(both, [SHAPES[0], (40, 32)]):
        found = sample.pred_instances
        assert len(found) > 0
        assert found.masks.shape == (len(found), *shape)
        assert found.masks.dtype == torch.bool
        assert 'mask_logits' not in found
    (alone,) = detect(model, batch(images(SHAPES)[:1]))
    assert torch.equal(alone.pred_instances.masks, both[0].pred_instances.masks)
    model.set_vocabulary([f'class {number}' for number in range(300)])
    (long,) = detect(model, batch(images(SHAPES)[:1]))
    assert long.pred_instances.masks.shape == (100, *SHAPES[0])
    model.masks_at_test = False
    (boxes_only,) = detect(model, batch(images(SHAPES)[:1]))
    assert 'masks' not in boxes_only.pred_instances
    model.masks_at_test = True
    model.test_cfg['score_thr'] = 1.0
    (nothing,) = detect(model, batch(images(SHAPES)[:1]))
    assert nothing.pred_instances.masks.shape == (0, *SHAPES[0])


def test_it_learns_the_mask_of_what_is_asked_for() -> None:
    """Two triangles share a box; each word is answered with its own."""
    head = mask_head(hidden_channels=16, roi_size=7, strides=(8,))
    rows, columns = np.mgrid[:64, :64]
    inside = (rows >= 8) & (rows < 56) & (columns >= 8) & (columns < 56)
    pixels = np.stack([inside & (rows >= columns), inside & (rows < columns)]).astype(np.uint8)
    maps = toy_maps(1)[:1]
    maps[0][0, :2] = torch.nn.functional.avg_pool2d(torch.from_numpy(pixels).float(), 8)
    tokens = torch.randn(1, 3, 5)
    boxes = torch.tensor([[8.0, 8.0, 56.0, 56.0]]).repeat(2, 1)
    token_map = torch.tensor([[False, True, False], [False, False, True]])
    truth = MaskTargets(boxes, token_map, BitmapMasks(pixels, 64, 64))
    optimizer = torch.optim.Adam(head.parameters(), lr=1e-2)
    for _ in range(80):
        loss = head.loss(maps, tokens, [truth], [boxes])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    with torch.no_grad():
        (logits,) = head.predict(maps, tokens, [token_map], [boxes], [torch.tensor([1, 0])])
    found = InstanceData(bboxes=boxes, labels=torch.tensor([1, 0]), mask_logits=logits)
    masks = head.paste(found, DetDataSample(metainfo={'ori_shape': (64, 64)}), rescale=True)
    for mask, own in zip(masks.numpy(), pixels[::-1].astype(bool)):
        overlap = (mask & own).sum() / (mask | own).sum()
        assert overlap > 0.8, overlap


# --- data, weights, errors ----------------------------------------------------------------------------------


def test_sentences_say_which_words_tell_of_the_image(folder: Path, tmp_path: Path) -> None:
    toy_config(folder)
    results = {'gt_bboxes': np.zeros((1, 4)), 'gt_bboxes_labels': np.array([1])}
    assert SampleClassNames(WORDS, folder)(results)['caption_ranges'] == []
    (tmp_path / 'others.txt').write_text('a bird\nthe cup\n')
    pack = PackNegativeCaptions(tmp_path / 'others.txt', folder, plain_prob=0.0, full_prob=1.0)
    packed = pack({'text': CAPTION, 'tokens_positive': {0: [[2, 10]]}})
    ((start, end),) = packed['caption_ranges']
    assert packed['text'][start:end] == CAPTION + '.'


def test_published_language_head_is_kept_on_demand(folder: Path) -> None:
    model = toy_glipv2(folder, 'language')
    theirs = {'bbox_head.head.dyhead_tower.0.b_attn.gamma_v': torch.zeros(1)}
    for ours, name in (
        ('dense.weight', 'transform.dense.weight'),
        ('dense.bias', 'transform.dense.bias'),
        ('norm.weight', 'transform.LayerNorm.weight'),
        ('norm.bias', 'transform.LayerNorm.bias'),
        ('decoder.weight', 'decoder.weight'),
        ('decoder.bias', 'bias'),
    ):
        theirs[f'bbox_head.head.mlm_head.{name}'] = model.state_dict()[f'language.{ours}'].clone()
    theirs['bbox_head.head.project_text.weight'] = torch.zeros(2, 2)
    theirs |= {'bbox_head.head.dot_product_projection_text.weight': torch.zeros(2, 2)}
    kept = convert_glipv2(theirs)
    head = {
        key.removeprefix('language.'): t for key, t in kept.tensors.items() if key.startswith('language.')
    }
    model.language.load_state_dict(head)
    assert not kept.stripped
    dropped = convert_glip(theirs)
    assert len(dropped.stripped) == 6
    assert not any(key.startswith('language.') for key in dropped.tensors)


def test_an_encoder_without_a_hidden_word_is_refused(folder: Path) -> None:
    clip = {'type': 'clip', 'model': str(ROOT / 'ovd/assets/clip_tiny_shapes')}
    with pytest.raises(ValueError, match='ClipTokens'):
        toy_glipv2(folder, 'language', text={'encoder': clip, 'vocabulary': WORDS})
