"""GroupViT against stored values of the released implementation: forward, other sizes, training step."""

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
from mmseg.structures import SegDataSample
from torch import Tensor, nn
from torch.nn import functional as F

from ovd.checkpoints.loading import load_into, load_tensors
from ovd.conversion.groupvit import convert_groupvit, export_groupvit
from ovd.layers.contrastive import caption_loss
from ovd.layers.cosine_classifier import l2_normalize
from ovd.models.groupvit.grouping import soft_assignment, straight_through
from ovd.models.groupvit.segmentor import GroupViT
from ovd.registry import MODELS
from tests.helpers import shared_path
from tests.toys.groupvit import reference_config

FOLDER = 'goldens/groupvit/'


def load(name: str) -> dict[str, Tensor]:
    with np.load(shared_path(f'{FOLDER}{name}.npz')) as file:
        return {key: torch.from_numpy(file[key]) for key in file.files}


def reference_model(state: str = 'nvlabs_a_state', **changes: Any) -> GroupViT:
    converted = convert_groupvit(load_tensors(shared_path(f'{FOLDER}{state}.safetensors')))
    assert not converted.unmatched
    model = MODELS.build(reference_config(**changes)).eval()
    assert load_into(model, converted.tensors).is_complete
    return model


@pytest.fixture(scope='module')
def model() -> GroupViT:
    return reference_model()


@pytest.fixture(scope='module')
def golden() -> dict[str, Tensor]:
    return load('nvlabs_a_io')


@pytest.fixture(autouse=True)
def no_grad(request: pytest.FixtureRequest) -> Iterator[None]:
    with torch.set_grad_enabled('step' in request.node.name or 'operators' in request.node.name):
        yield


def close(actual: Tensor, expected: Tensor, atol: float = 1e-4) -> None:
    torch.testing.assert_close(actual, expected, atol=atol, rtol=1e-4)


# --- operators ------------------------------------------------------------------------------------------


def test_assignment_operators() -> None:
    golden = load('nvlabs_assign_ops')
    for name, operator in {
        'hard': lambda x: straight_through(soft_assignment(x)),
        'gumbel_hard': lambda x: straight_through(soft_assignment(x, golden['gumbel_noise'])),
        'gumbel_soft_tau05': lambda x: soft_assignment(x, golden['gumbel_noise_tau05'], tau=0.5),
    }.items():
        logits = golden['logits'].clone().requires_grad_()
        output = operator(logits)
        close(output, golden[name], 1e-6)
        (output * golden['upstream']).sum().backward()
        close(logits.grad, golden[f'{name}_grad'], 1e-6)


# --- inference ------------------------------------------------------------------------------------------


def record(model: nn.Module) -> tuple[dict[str, Tensor], list[Any]]:
    """Outputs of every module of the image encoder, by name, as the model runs."""
    seen: dict[str, Tensor] = {}

    def keep(name: str) -> Any:
        return lambda module, inputs, output: seen.__setitem__(name, output)

    return seen, [part.register_forward_hook(keep(name)) for name, part in model.named_modules()]


def test_every_intermediate_of_the_image_encoder(model: GroupViT, golden: dict[str, Tensor]) -> None:
    seen, hooks = record(model.image_encoder)
    patches, grid = model.image_encoder.embed(golden['image'])
    model.encode_image(golden['image'])
    for hook in hooks:
        hook.remove()
    assert grid == (8, 8)
    close(seen['norm_patches'], golden['patch_embed_normed'])
    close(patches, golden['tokens_in'])
    close(seen['stages.1.projector'], golden['stage1.group_projector_out'])
    for stage, blocks in enumerate((2, 2, 1)):
        for block in range(blocks):
            close(seen[f'stages.{stage}.blocks.{block}'], golden[f'stage{stage}.block{block}_out'])
        segments, tokens, _ = seen[f'stages.{stage}']
        close(segments, golden[f'stage{stage}.x_out'])
        if stage < 2:
            close(tokens, golden[f'stage{stage}.group_token_out'])
    names = {
        'norm_tokens': 'norm_tokens',
        'norm_segments': 'norm_x',
        'norm_mixed': 'norm_post_tokens',
        'cross': 'pre_assign_attn',
        'merge.proj': 'assign',
        'norm_merged': 'norm_new_x',
        'mlp': 'mlp_channels',
    }
    for stage in range(2):
        inside = f'stages.{stage}.grouping'
        for ours, theirs in names.items():
            close(seen[f'{inside}.{ours}'], golden[f'stage{stage}.grouping.{theirs}'])
        close(seen[f'{inside}.mix'].transpose(1, 2), golden[f'stage{stage}.grouping.mlp_inter'])
        close(seen[inside].segments, golden[f'stage{stage}.grouping.out'])
        assert torch.equal(seen[inside].hard, golden[f'stage{stage}.grouping.hard'][:, 0])
        close(seen[inside].soft, golden[f'stage{stage}.grouping.soft'][:, 0])
    close(seen['norm'], golden['final_norm'])


@pytest.mark.parametrize(
    ('size', 'grid'), [('', (8, 8)), ('hi', (10, 12)), ('odd', (8, 12)), ('tall', (12, 8))]
)
def test_any_size(model: GroupViT, golden: dict[str, Tensor], size: str, grid: tuple[int, int]) -> None:
    images = golden[f'image_{size}' if size else 'image']
    prefix = f'{size}.' if size else ''
    output = model.encode_image(images)
    assert output.grid == grid
    close(output.features, golden[f'{prefix}feat'])
    close(output.pooled, golden[f'{prefix}pooled'])
    for stage in range(2):
        close(output.soft[stage], golden[f'{prefix}attn{stage}_soft'][:, 0])
        assert torch.equal(output.hard[stage], golden[f'{prefix}attn{stage}_hard'][:, 0])


def test_projections_texts_and_scores(model: GroupViT, golden: dict[str, Tensor]) -> None:
    output = model.encode_image(golden['image'])
    close(model.project_image(output.pooled), golden['image_x'])
    close(model.project_image(output.features), golden['image_feat'])
    texts = model.encode_text(golden['text'])
    close(texts, golden['text_x'])
    predictions = model.group_predictions(golden['image'])
    close(predictions.scale, golden['logit_scale_effective'])
    close(
        predictions.scale * predictions.image_embeddings @ l2_normalize(texts).T,
        golden['logits_per_image'],
        1e-3,
    )
    prompts = model.encode_text(golden['class_text'].flatten(0, 1))
    classes = l2_normalize(prompts.unflatten(0, golden['class_text'].shape[:2]).mean(1))
    close(classes, golden['class_embedding'])
    close(predictions.image_embeddings @ classes.T, golden['zero_shot_cosine'])


def test_scale_is_clamped() -> None:
    model = reference_model()
    model.logit_scale.fill_(torch.tensor(150.0).log())
    close(model.group_predictions(torch.zeros(1, 3, 32, 32)).scale, torch.tensor(100.0))


# --- training -------------------------------------------------------------------------------------------


def test_training_step_with_recorded_noise() -> None:
    golden = load('nvlabs_a_train')
    model = reference_model().train()
    for stage in range(2):
        assignment = model.image_encoder.stages[stage].grouping.merge.assignment
        assignment.noise = lambda logits, stage=stage: golden[f'gumbel_noise{stage}'][:, 0]
    samples = []
    for token_ids in golden['text']:
        sample = SegDataSample()
        sample.token_ids = token_ids
        samples.append(sample)
    losses = model.loss(golden['image'], samples)
    close(losses['loss_caption'], golden['loss'])
    close(losses['loss_multi_label'], golden['multi_label_loss'])
    (losses['loss_caption'] + losses['loss_multi_label']).backward()

    theirs = export_groupvit({name: p.grad for name, p in model.named_parameters()}, 'nvlabs').tensors
    compared = 0
    for key, expected in golden.items():
        if key.startswith('grad/'):
            torch.testing.assert_close(theirs[key.removeprefix('grad/')], expected, atol=1e-4, rtol=1e-3)
            compared += 1
    assert compared > 40
    buffers = export_groupvit(dict(model.named_buffers()), 'nvlabs').tensors
    for key, expected in golden.items():
        if key.startswith('buffer_after/'):
            close(buffers[key.removeprefix('buffer_after/')], expected)


# --- transformers ---------------------------------------------------------------------------------------


def test_layout_of_transformers() -> None:
    """Its stored model 'a' has the same weights in the other layout."""
    golden = load('hf_a_io')
    model = reference_model('hf_a_state', multi_label=None)
    output = model.encode_image(golden['pixel_values'])
    close(output.features, golden['vision_last_hidden_state'])
    close(output.pooled, golden['vision_pooled'])
    for stage in range(2):
        close(output.soft[stage], golden[f'attentions{stage}'])
    images, texts = (
        model.group_batch(output).image_embeddings,
        l2_normalize(model.encode_text(golden['input_ids'])),
    )
    close(images, golden['image_embeds'])
    close(texts, golden['text_embeds'])
    scale = model.logit_scale.exp()
    close(scale * images @ texts.T, golden['logits_per_image'], 1e-3)
    pairs = min(len(images), len(texts))
    loss = caption_loss(images[:pairs], texts[:pairs], model.logit_scale)
    close(loss, golden['contrastive_loss_firstn'].squeeze())
    # Their maps have the scale twice, and the soft assignments all the way.
    groups = scale * (scale * model.group_batch(output).group_embeddings @ texts.T)
    shares = (output.soft[1] @ output.soft[0]).unflatten(-1, output.grid)
    maps = F.interpolate(shares, size=golden['pixel_values'].shape[-2:], mode='bilinear')
    close(torch.einsum('bgk,bghw->bkhw', groups, maps), golden['segmentation_logits'], 1e-2)
