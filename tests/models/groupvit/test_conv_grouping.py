"""Groups that hold only what their members show, and the objectives that make them answer for words."""

from collections.abc import Sequence
from typing import Any

import pytest
import torch
from mmseg.structures import SegDataSample
from torch import Tensor

from ovd.layers.cosine_classifier import l2_normalize
from ovd.models.clip_resnet import ClipResNet
from ovd.models.groupvit.conv_encoder import ConvGrouping
from ovd.models.groupvit.group_batch import GroupBatch
from ovd.models.groupvit.grouping import GroupingOutput
from ovd.models.groupvit.presence_loss import coherence_loss, presence_loss
from ovd.models.groupvit.word_objectives import Coherence, ForegroundPooling, Presence, batch_nouns
from ovd.registry import MODELS
from tests.helpers import ROOT

TINY = str(ROOT / 'ovd/assets/clip_tiny_shapes')


def encoder(**changes: Any) -> ConvGrouping:
    torch.manual_seed(0)
    options = {
        'stem': {'model': TINY, 'frozen_stages': 2, 'norm_eval': True},
        'dim': 16,
        'key_dim': 8,
        'num_groups': (6, 3),
        'num_heads': 2,
        'image_size': 64,
    }
    return ConvGrouping(**{**options, **changes})


# --- the encoder ----------------------------------------------------------------------------------------


@torch.no_grad()
def test_groups_are_the_means_of_their_members() -> None:
    net = encoder().eval()
    output = net(torch.randn(2, 3, 64, 48))
    assert output.grid == (8, 6)
    assert [tuple(maps.shape) for maps in output.soft] == [(2, 6, 48), (2, 3, 6)]
    assert output.tokens is not None
    for image in range(2):
        segments, groups = output.hard[0][image].argmax(0), output.hard[1][image].argmax(0)
        final = [int(groups[segment]) for segment in segments]
        for group in range(3):
            members = [output.tokens[image, place] for place in range(48) if final[place] == group]
            mean = torch.stack([*members, torch.zeros(16)]).mean(0)  # an empty group is zero: eps is 1
            torch.testing.assert_close(output.features[image, group], mean, atol=1e-6, rtol=1e-5)
        used = sorted(set(final))
        torch.testing.assert_close(output.pooled[image], output.features[image, used].mean(0))
    for maps in (*output.soft, *output.hard):
        torch.testing.assert_close(maps.sum(1), torch.ones_like(maps[:, 0]))


@torch.no_grad()
def test_far_pixels_reach_neither_values_nor_first_choices() -> None:
    net = encoder(image_size=128).eval()
    torch.nn.init.normal_(net.mixers[0].proj.weight)
    images = torch.randn(1, 3, 128, 128)
    changed = images.clone()
    changed[..., :8] += 3
    before, after = net(images), net(changed)
    assert before.tokens is not None
    assert after.tokens is not None
    difference = (before.tokens - after.tokens).abs().amax(-1).view(16, 16).amax(0)
    assert difference[0] > 1e-2
    assert difference[8:].max() == 0
    assert torch.equal(before.soft[0].view(1, 6, 16, 16)[..., 8:], after.soft[0].view(1, 6, 16, 16)[..., 8:])


def test_gradient_reaches_what_is_trained_and_nothing_else() -> None:
    net = encoder().train()
    output = net(torch.randn(4, 3, 64, 64))
    target = torch.randn(16)
    (output.features @ target).square().sum().backward()
    without = {name for name, value in net.named_parameters() if value.grad is None or not value.grad.any()}
    frozen = {name for name in without if 'layer3' not in name and name.startswith('stem')}
    assert {name for name, value in net.named_parameters() if not value.requires_grad} == frozen
    # A constant on all keys is taken out again by their standardisation; layers behind a zero get nothing.
    rest = {name for name in without - frozen if not name.startswith('mixers.0')}
    assert all(name.endswith(('key.bias', 'query.bias')) or 'blocks.1' in name for name in rest), rest
    statistics = net.stem.tower.layer3[0].bn1.running_mean.clone()
    net(torch.randn(4, 3, 64, 64))
    assert torch.equal(net.stem.tower.layer3[0].bn1.running_mean, statistics)


def test_standardised_keys_spread_over_the_groups() -> None:
    images = torch.randn(8, 3, 64, 64)
    used = {}
    for standardize in (True, False):
        net = encoder(standardize=standardize, num_groups=(24,), depths=(0,)).train()
        used[standardize] = int((net(images).soft[0].argmax(1).flatten().bincount(minlength=24) > 0).sum())
    assert used[True] >= 20
    assert used[True] > used[False]


def test_other_sizes_and_numbers_of_stages() -> None:
    net = encoder(num_groups=(5,), depths=(1,)).eval()
    output = net(torch.randn(1, 3, 40, 88))
    assert output.grid == (5, 11)
    assert output.features.shape == (1, 5, 16)
    assert len(encoder(num_groups=(8, 6, 4), depths=(0, 1, 1)).eval()(torch.randn(1, 3, 64, 64)).hard) == 3
    with pytest.raises(ValueError, match='num_groups'):
        encoder(num_groups=(5, 3), depths=(1,))


@torch.no_grad()
def test_flat_last_stage_is_the_strided_one_seen_at_every_place() -> None:
    flat = ClipResNet(TINY, out_indices=(1, 2), flat_last=True).eval()
    middle, deep = flat(torch.randn(1, 3, 64, 64))
    assert flat.size_divisor == 8
    assert deep.shape == (1, 256, 8, 8)
    block = ClipResNet(TINY, out_indices=(2,)).stages[2][0].eval()
    smooth = torch.nn.AvgPool2d(3, stride=1, padding=1)
    inner = smooth(block.act2(block.bn2(block.conv2(block.act1(block.bn1(block.conv1(middle)))))))
    skip = block.downsample[1:](smooth(middle))
    torch.testing.assert_close(deep, torch.relu(block.bn3(block.conv3(inner)) + skip))
    with pytest.raises(ValueError, match='flat_last'):
        ClipResNet(TINY, out_indices=(0,), flat_last=True)


# --- the losses -----------------------------------------------------------------------------------------


def test_presence_loss_by_hand() -> None:
    probs = torch.tensor([[0.5, 0.25, 0.2], [0.9, 0.1, 0.1]], requires_grad=True)
    present = torch.tensor([[True, True, False], [False, False, False]])
    loss = presence_loss(probs, present, negative_weight=0.5)
    found = -(torch.tensor(0.5).log() + torch.tensor(0.25).log()) / 2
    wrong = -torch.tensor(0.8).log() - torch.tensor([0.1, 0.9, 0.9]).log().sum()
    torch.testing.assert_close(loss, (found + 0.5 * wrong) / 2)
    loss.backward()
    assert probs.grad is not None
    assert (probs.grad[present] < 0).all()
    assert (probs.grad[~present] > 0).all()
    assert presence_loss(torch.tensor([[0.0]]), torch.tensor([[True]])).isfinite()


def test_coherence_loss_moves_groups_and_choices_only() -> None:
    tokens = torch.eye(3)[None, :2].requires_grad_()
    groups = torch.eye(3)[None, [0, 2]].requires_grad_()
    members = torch.tensor([[[1.0, 0.0], [0.0, 1.0]]], requires_grad=True)
    loss = coherence_loss(tokens, groups, members)
    assert float(loss.detach()) == pytest.approx(0.5)  # token 0 agrees with its group, token 1 not at all
    loss.backward()
    assert tokens.grad is None
    assert groups.grad is not None
    assert members.grad is not None
    assert members.grad[0, 0, 0] < members.grad[0, 1, 0]  # the first token belongs to the first group


# --- the objectives -------------------------------------------------------------------------------------


def batch(
    noun_ids: Sequence[Sequence[int]], features: Tensor, texts: Tensor | None = None, **changes: Any
) -> GroupBatch:
    """Groups [B, G, 4] that are tokens too; nouns lie along the axes 0, 1, 2 and background along 3."""
    number = torch.eye(features.shape[1]).expand(len(features), -1, -1)
    output = GroupingOutput(
        features, features.mean(1), (number,), (number,), (1, features.shape[1]), features
    )
    given = [SegDataSample() for _ in noun_ids]
    for sample, ids in zip(given, noun_ids):
        sample.set_field(torch.tensor(ids), 'noun_ids')
    if texts is None:
        axes = torch.eye(4)[torch.tensor(noun_ids).clamp(min=0)]
        texts = torch.cat([axes[:, :1], axes], dim=1)
    options = {'background': torch.eye(4)[3], 'text_embeddings': texts, 'samples': given, **changes}
    return GroupBatch(output, l2_normalize(features.mean(1)), lambda x: x, torch.tensor(10.0), **options)


def test_nouns_of_a_batch_are_told_apart_by_their_numbers() -> None:
    texts = torch.zeros(2, 3, 4)
    texts[0, 1], texts[0, 2] = torch.eye(4)[0], torch.eye(4)[1]
    texts[1, 1], texts[1, 2] = torch.eye(4)[2], torch.tensor([9.0, 9, 9, 9])
    words, present = batch_nouns(batch([[5, 7], [5, -1]], torch.zeros(2, 1, 4), texts))
    torch.testing.assert_close(
        words[0], l2_normalize(torch.tensor([1.0, 0, 1, 0]))
    )  # mean of both prompts of noun 5
    torch.testing.assert_close(words[1], torch.eye(4)[1])
    assert present.tolist() == [[True, True], [True, False]]


@pytest.mark.parametrize('level', ['groups', 'tokens'])
def test_presence_wants_each_noun_in_some_group_and_no_other(level: str) -> None:
    objective = Presence(level=level, topk=1)
    name = f'loss_presence_{level}'
    axes = torch.eye(4)
    right = torch.stack([axes[[0, 1, 3]], axes[[2, 3, 3]]])
    merged = torch.stack([l2_normalize(axes[[0, 1]].sum(0)).expand(3, -1), axes[[2, 3, 3]]])
    wrong = torch.stack([axes[[0, 1, 2]], axes[[2, 3, 3]]])
    nouns = [[0, 1], [2, -1]]
    good, mixed, false = (objective(batch(nouns, x))[name] for x in (right, merged, wrong))
    assert good < 0.01
    assert mixed > good + 0.3  # one group for two things names neither
    assert false > good + 0.5
    features = merged.clone().requires_grad_()
    objective(batch(nouns, features))[name].backward()
    assert features.grad is not None
    assert features.grad[0].any()
    half = Presence(level=level, topk=1, weight=0.5)(batch(nouns, merged))[name]
    torch.testing.assert_close(half, mixed / 2)


def test_empty_groups_find_nothing() -> None:
    axes = torch.eye(4)
    given = batch([[0]], axes[[0, 3]][None])
    hard = torch.tensor([[[0.0, 0.0], [1.0, 1.0]]])
    emptied = GroupBatch(
        given.output._replace(hard=(hard,)),
        given.image_embeddings,
        given.project,
        given.scale,
        given.background,
        given.text_embeddings,
        given.samples,
    )
    assert Presence()(given)['loss_presence_groups'] < 0.01
    assert Presence()(emptied)['loss_presence_groups'] > 5
    torch.testing.assert_close(ForegroundPooling()(given)[0], axes[0])
    assert ForegroundPooling()(emptied)[0].abs().max() == 0


def test_pooling_weighs_groups_by_how_little_they_look_like_background() -> None:
    groups = torch.tensor([[[0.6, 0.0, 0.0, 0.8], [0.0, 1.0, 0.0, 0.0], [0.0, 0.0, 0.6, -0.8]]])
    expected = l2_normalize(0.2 * groups[0, 0] + groups[0, 1] + groups[0, 2])
    torch.testing.assert_close(ForegroundPooling()(batch([[0]], groups))[0], expected)


def test_what_objectives_need_is_asked_for() -> None:
    features = torch.eye(4)[None]
    with pytest.raises(ValueError, match='background=True'):
        Presence()(batch([[0]], features, background=None))
    with pytest.raises(ValueError, match='background=True'):
        ForegroundPooling()(batch([[0]], features, background=None))
    with pytest.raises(ValueError, match='noun_ids'):
        Presence()(batch([[0]], features, samples=[SegDataSample()]))
    with pytest.raises(ValueError, match='noun_ids'):
        Presence()(batch([[]], features, texts=torch.zeros(1, 1, 4)))
    bare = batch([[0]], features)
    bare = GroupBatch(
        bare.output._replace(tokens=None),
        bare.image_embeddings,
        bare.project,
        bare.scale,
        bare.background,
        bare.text_embeddings,
        bare.samples,
    )
    for objective in (Presence(level='tokens'), Coherence()):
        with pytest.raises(ValueError, match='tokens'):
            objective(bare)
    with pytest.raises(ValueError, match='pixels'):
        Presence(level='pixels')


# --- all of it ------------------------------------------------------------------------------------------


def test_a_few_steps_on_two_pictures_find_their_nouns() -> None:
    torch.manual_seed(0)
    model = MODELS.build(
        {
            'type': 'ovd.GroupViT',
            'image_encoder': {
                'type': 'ovd.ConvGrouping',
                'stem': {'model': TINY, 'frozen_stages': 2, 'norm_eval': True},
                'dim': 16,
                'key_dim': 8,
                'num_groups': (6, 3),
                'num_heads': 2,
                'image_size': 64,
            },
            'text_encoder': {'clip': TINY},
            'image_projection': {'type': 'ovd.NormProjection', 'hidden_dim': 32},
            'background': True,
            'pooling': {'type': 'ovd.ForegroundPooling'},
            'objectives': [
                {'type': 'ovd.Presence', 'level': 'tokens'},
                {'type': 'ovd.Presence'},
                {'type': 'ovd.Coherence'},
            ],
            'text': {'vocabulary': ['star', 'house']},
            'readout': {
                'type': 'ovd.SoftReadout',
                'affinity': 'softmax',
                'class_topk': None,
                'assignment': 'hard',
                'background': {'learned': True, 'threshold': 0.5},
            },
        }
    )
    images = 0.3 * torch.randn(2, 3, 64, 64)
    images[0, 0] += 1.5
    images[1, 2] += 1.5
    nouns = ['star', 'house']
    given = []
    for index, noun in enumerate(nouns):
        sample = SegDataSample(metainfo={'ori_shape': (64, 64), 'img_shape': (64, 64)})
        texts = [f'a picture of a {noun}', f'a photo of a {noun}.', f'a picture of a {noun}']
        sample.set_field(_token_ids(texts), 'token_ids')
        sample.set_field(torch.tensor([index, -1]), 'noun_ids')
        sample.set_field(torch.tensor([True, False]), 'noun_mask')
        given.append(sample)
    trained = [value for value in model.parameters() if value.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=5e-3)
    history = []
    model.train()
    for _ in range(15):
        losses = model.loss(images, given)
        total = sum(value for name, value in losses.items() if name.startswith('loss'))
        optimizer.zero_grad()
        total.backward()
        optimizer.step()
        history.append({name: float(value.detach()) for name, value in losses.items()})
    for name in ('loss_presence_tokens', 'loss_presence_groups'):
        assert history[-1][name] < 0.6 * history[0][name], name
    assert history[-1]['loss_caption'] < history[0]['loss_caption']
    model.eval()
    scores = model.inference_scores(images, given)
    assert [maps.channels for maps in scores] == [3, 3]
    found = [maps.rows(0, 64)[0, :2].amax((1, 2)) for maps in scores]
    assert found[0][0] > found[0][1]
    assert found[1][1] > found[1][0]


def _token_ids(texts: list[str]) -> Tensor:
    from open_clip.tokenizer import SimpleTokenizer

    return SimpleTokenizer(context_length=32)(texts)
