"""Fusion of image and text: against the stored reference, a plain second form, and its own other path."""

import pytest
import torch
from torch import Tensor, nn

from ovd.models.glip.fusion import (
    LIMIT,
    BidirectionalAttention,
    TextLayer,
    VLFuse,
    _clamped_attention,
    scores_are_small,
)
from tests.toys.reference.golden_glip import FUSE, TEXT_LAYER, golden, levels, load


def test_the_block_gives_the_stored_streams() -> None:
    stored = golden('bi_attn_a')
    fuse = VLFuse(32, 24, 32, 4)
    load(fuse.eval(), stored, FUSE)
    for mask, prefix in ((stored['in.mask_l'].bool(), 'out.'), (None, 'out_nomask.')):
        maps, text = fuse(levels(stored, 'in.vf'), stored['in.lang'], mask)
        torch.testing.assert_close(text, stored[f'{prefix}lang'], atol=1e-6, rtol=1e-6)
        for ours, theirs in zip(maps, levels(stored, f'{prefix}vf')):
            torch.testing.assert_close(ours, theirs, atol=1e-6, rtol=1e-6)
    added = fuse.attention(stored['mid.ln_v'], stored['mid.ln_l'], stored['in.mask_l'].bool())
    for ours, name in zip(added, ('mid.delta_v', 'mid.delta_l')):
        torch.testing.assert_close(ours, stored[name], atol=1e-6, rtol=0)


def test_a_mask_of_places_gives_the_stored_streams() -> None:
    stored = golden('single_scale_bi_attn_a')
    fuse = VLFuse(32, 24, 32, 4)
    load(fuse.eval(), stored, FUSE)
    places, text = fuse.fuse(
        stored['in.v'], stored['in.l'], stored['in.mask_l'].bool(), ~stored['in.mask_v'].bool()
    )
    torch.testing.assert_close(places, stored['out.v'], atol=1e-6, rtol=0)
    torch.testing.assert_close(text, stored['out.l'], atol=1e-6, rtol=0)


def test_huge_scores_are_clamped_as_stored() -> None:
    stored = golden('bi_attn_clamp_a')
    attention = BidirectionalAttention(32, 24, 32, 4)
    names = {key.removeprefix('attn.'): value.removeprefix('attention.') for key, value in FUSE.items()}
    load(attention.eval(), stored, names)
    places, text = attention(stored['in.v'], stored['in.l'], stored['in.mask_l'].bool())
    scale = stored['out.v'].abs().max()
    torch.testing.assert_close(places, stored['out.v'], atol=float(scale) * 1e-6, rtol=1e-6)
    torch.testing.assert_close(text, stored['out.l'], atol=float(scale) * 1e-6, rtol=1e-6)


def test_the_text_layer_gives_the_stored_stream() -> None:
    stored = golden('bert_layer_a')
    layer = TextLayer(24, 4, 48)
    load(layer.eval(), stored, TEXT_LAYER)
    text = layer(stored['in.hidden'], stored['in.mask'].bool())
    torch.testing.assert_close(text, stored['out.hidden'], atol=2e-6, rtol=0)


def plain_attention(attention: BidirectionalAttention, places: Tensor, text: Tensor, mask: Tensor) -> Tensor:
    """Places from text, head by head and image by image, from the formulas."""
    head = attention.query.out_features // attention.num_heads
    out = []
    for image in range(len(places)):
        query, key = attention.query(places[image]) * head**-0.5, attention.key(text[image])
        value = attention.text_value(text[image])
        parts = []
        for start in range(0, attention.query.out_features, head):
            part = slice(start, start + head)
            scores = (query[:, part] @ key[:, part].T).clamp(-LIMIT, LIMIT)
            weights = torch.where(mask[image], scores, torch.tensor(-9e15)).softmax(-1)
            parts.append(weights @ value[:, part])
        out.append(attention.image_out(torch.cat(parts, dim=1)))
    return torch.stack(out)


def inputs() -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    places = torch.randn(2, 11, 8, generator=generator)
    text = torch.randn(2, 5, 6, generator=generator)
    return places, text, torch.tensor([[True] * 5, [True] * 3 + [False] * 2])


def test_places_attend_to_real_tokens_only() -> None:
    attention = BidirectionalAttention(8, 6, 16, 2).eval()
    places, text, mask = inputs()
    ours, _ = attention(places, text, mask)
    torch.testing.assert_close(ours, plain_attention(attention, places, text, mask), atol=1e-6, rtol=0)


@pytest.mark.parametrize('with_place_mask', [False, True])
def test_both_paths_agree_in_values_and_gradients(
    with_place_mask: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    places, text, mask = inputs()
    place_mask = torch.arange(11) < torch.tensor([[11], [7]]) if with_place_mask else None
    results = []
    for small in (True, False):
        monkeypatch.setattr('ovd.models.glip.fusion.scores_are_small', lambda query, key, small=small: small)
        torch.manual_seed(0)
        attention = BidirectionalAttention(8, 6, 16, 2)
        leaves = [places.clone().requires_grad_(), text.clone().requires_grad_()]
        out = attention(*leaves, mask, place_mask)
        (out[0].square().sum() + (out[1] * mask[..., None]).square().sum()).backward()
        results.append([*out, *(leaf.grad for leaf in leaves), *(p.grad for p in attention.parameters())])
    for fused, clamped in zip(*results):
        torch.testing.assert_close(fused, clamped, atol=2e-6, rtol=1e-5)


@pytest.mark.parametrize('at_a_time', [1, 60, 1 << 22])
def test_the_folded_path_of_inference_agrees(at_a_time: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr('ovd.models.glip.fusion._SCORES_AT_A_TIME', at_a_time)
    torch.manual_seed(0)
    attention = BidirectionalAttention(8, 6, 32, 4).eval()
    for layer in attention.children():
        torch.nn.init.normal_(layer.bias)
    places, text, mask = inputs()
    for text_mask in (mask, None):
        expected = attention(places, text, text_mask)
        with torch.no_grad():
            assert attention._is_foldable(places, text)
            found = attention._attend_folded(places, text, text_mask)
            assert found is not None
            for ours, other in zip(found, expected):
                torch.testing.assert_close(ours, other, atol=2e-6, rtol=1e-5)
            for ours, other in zip(attention(places, text, text_mask), found):
                assert torch.equal(ours, other)


def test_folding_is_left_where_it_does_not_help() -> None:
    places, text, mask = inputs()
    many_heads = BidirectionalAttention(8, 6, 16, 16).eval()
    with torch.no_grad():
        assert not many_heads._is_foldable(places, torch.zeros(2, 400, 6))
        assert BidirectionalAttention(8, 6, 16, 2)._attend_folded(places * 1e6, text, mask) is None
        with torch.autocast('cpu', torch.bfloat16):
            assert not many_heads._is_foldable(places, text)
    assert not BidirectionalAttention(8, 6, 16, 2)._is_foldable(places, text)


def test_the_fused_path_is_taken_only_where_no_score_is_clamped() -> None:
    query, key = torch.full((1, 1, 3, 4), 10.0), torch.full((1, 1, 2, 4), 10.0)
    assert scores_are_small(query, key)
    assert not scores_are_small(query * 100, key)
    huge = _clamped_attention(query * 1e4, key * 1e4, query, key, None, None, 0.0)
    assert all(part.isfinite().all() for part in huge)


def test_padding_of_the_text_changes_nothing() -> None:
    torch.manual_seed(0)
    fuse, layer = VLFuse(8, 6, 16, 2).eval(), TextLayer(6, 2, 12).eval()
    _, text, mask = inputs()
    maps = [torch.randn(2, 8, 3, 4), torch.randn(2, 8, 1, 2)]
    long_maps, long_text = fuse(maps, text, mask)
    short_maps, short_text = fuse([level[1:] for level in maps], text[1:, :3], mask[1:, :3])
    torch.testing.assert_close(long_text[1:, :3], short_text, atol=1e-6, rtol=0)
    for whole, part in zip(long_maps, short_maps):
        torch.testing.assert_close(whole[1:], part, atol=1e-6, rtol=0)
    torch.testing.assert_close(
        layer(long_text, mask)[1:, :3], layer(short_text, mask[1:, :3]), atol=1e-6, rtol=0
    )


@pytest.mark.parametrize('dtype', [torch.bfloat16, torch.float16])
def test_half_precision_stays_finite(dtype: torch.dtype) -> None:
    fuse, layer = VLFuse(8, 6, 16, 2), TextLayer(6, 2, 12)
    with torch.no_grad():
        fuse.attention.query.weight.mul_(200)
        fuse.attention.key.weight.mul_(200)
    _, text, mask = inputs()
    with torch.autocast('cpu', dtype):
        maps, fused = fuse([torch.randn(2, 8, 3, 4)], text, mask)
        fused = layer(fused, mask)
    loss = maps[0].float().square().sum() + fused.float().square().sum()
    loss.backward()
    assert loss.isfinite()
    for module in (fuse, layer):
        assert_gradients(module)


def assert_gradients(module: nn.Module) -> None:
    for name, parameter in module.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.isfinite().all(), name


def test_widths_must_fit() -> None:
    with pytest.raises(ValueError, match='embed_dims 10 is not divisible by num_heads 4'):
        VLFuse(8, 6, 10, 4)
    with pytest.raises(ValueError, match='channels 6 is not divisible by num_heads 4'):
        TextLayer(6, 4, 12)
