"""Loading CLIP models and encoding texts: parity with open_clip, exact length cut, refusals."""

import json
import logging
import re
import warnings
from pathlib import Path
from typing import Any

import open_clip
import pytest
import safetensors.torch
import torch
from torch import Tensor, nn

from ovd.encoders.loading import build_clip, load_clip, save_clip
from ovd.encoders.text_encoder import TextEncoder, TokenTower
from tests.toys.clip import VIT, write_architecture

TEXTS = [
    'cat',
    'a photo of a large red dog on the grass.',
    '!',
    '',
    'Straße',
    'cat',
    'a b c d e f g h i j k l',
]


def same_by_open_clip(folder: Path) -> tuple[nn.Module, Any]:
    name = f'local-dir:{folder}'
    return open_clip.create_model(name).eval(), open_clip.get_tokenizer(name)


def write_folder(folder: Path, **changes: Any) -> Path:
    architecture = write_architecture(folder.parent / f'{folder.name}.json', **changes)
    clip = build_clip(architecture, 'random:1')
    save_clip(folder, clip.model, clip.config)
    return folder


@pytest.mark.parametrize(
    'changes',
    [
        {},
        {'quick_gelu': True},
        {'vision_cfg': VIT, 'quick_gelu': True},
        {'custom_text': True},
        {'custom_text': True, 'text_cfg': {'pool_type': 'eos', 'eos_id': 49407}},
        {'custom_text': True, 'text_cfg': {'no_causal_mask': True, 'pool_type': 'last', 'proj_bias': True}},
        {'custom_text': True, 'text_cfg': {'embed_cls': True, 'context_length': 18}},
        {'custom_text': True, 'text_cfg': {'no_causal_mask': True, 'pool_type': 'first'}},
    ],
    ids=['root', 'quick_gelu', 'vit', 'custom', 'eos', 'siglip', 'coca', 'first'],
)
def test_encode_equals_open_clip(tmp_path: Path, changes: dict[str, Any]) -> None:
    folder = write_folder(tmp_path / 'clip', **changes)
    model, tokenizer = same_by_open_clip(folder)
    encoder = TextEncoder(folder)
    with torch.no_grad():
        wanted = model.encode_text(tokenizer(TEXTS))
    for batch_size in (1, 3, 256):
        torch.testing.assert_close(encoder.encode(TEXTS, batch_size), wanted, atol=2e-6, rtol=1e-5)
    assert encoder.embed_dim == 24
    assert wanted.std() > 1e-3


def test_activation_matters(tmp_path: Path) -> None:
    plain = TextEncoder(write_folder(tmp_path / 'plain'))
    quick = TextEncoder(write_folder(tmp_path / 'quick', quick_gelu=True))
    assert (plain.encode(['cat']) - quick.encode(['cat'])).abs().max() > 1e-5
    assert plain.fingerprint != quick.fingerprint


def test_length_cut_is_exact(tmp_path: Path) -> None:
    encoder = TextEncoder(write_folder(tmp_path / 'clip')).double()
    token_ids, mask = encoder.tokenize(['cat', 'a photo of a dog'])
    assert token_ids.shape == mask.shape == (2, 7)
    assert mask.sum(1).tolist() == [3, 7]
    full = encoder.tokenizer(['cat', 'a photo of a dog'])
    assert full.shape == (2, 18)
    with torch.no_grad():
        torch.testing.assert_close(encoder.tower(token_ids), encoder.tower(full), atol=1e-13, rtol=0)
        torch.testing.assert_close(
            encoder.tower.token_features(token_ids),
            encoder.tower.token_features(full)[:, :7],
            atol=1e-13,
            rtol=0,
        )


def test_token_tower_trains_like_open_clip(tmp_path: Path) -> None:
    clip = build_clip(write_architecture(tmp_path / 'a.json', quick_gelu=True), 'random:1')
    clip.model.double()
    token_ids = clip.tokenizer(['cat', 'a photo of a dog'])
    weights = torch.randn(2, 24, dtype=torch.float64)
    gradients = []
    for forward, ids in ((TokenTower(clip.model), token_ids[:, :7]), (clip.model.encode_text, token_ids)):
        clip.model.zero_grad()
        (forward(ids) * weights).sum().backward()
        parameters = clip.model.named_parameters()
        gradients.append({name: p.grad.clone() for name, p in parameters if p.grad is not None})
    cut, full = gradients
    assert cut.keys() == full.keys()
    assert len(cut) > 20
    for name, gradient in full.items():
        torch.testing.assert_close(cut[name], gradient, atol=1e-12, rtol=1e-9, msg=name)


def test_tokens_pool_to_the_text_embedding(tmp_path: Path) -> None:
    encoder = TextEncoder(write_folder(tmp_path / 'clip'))
    features, mask = encoder.encode_tokens(['a dog', 'cat'])
    assert features.shape == (2, 4, 32)
    assert mask.tolist() == [[True] * 4, [True, True, True, False]]
    at_end = features[torch.arange(2), mask.sum(1) - 1]
    projected = at_end @ encoder.tower.text_projection
    torch.testing.assert_close(projected, encoder.encode(['a dog', 'cat']), atol=1e-6, rtol=1e-5)


def test_towers_without_token_features_say_so(tmp_path: Path) -> None:
    encoder = TextEncoder(write_folder(tmp_path / 'coca', custom_text=True, text_cfg={'embed_cls': True}))
    with pytest.raises(ValueError, match='gives no features per token'):
        encoder.encode_tokens(['cat'])


def test_order_repetitions_and_batches_do_not_matter(tmp_path: Path) -> None:
    encoder = TextEncoder(write_folder(tmp_path / 'clip'))
    rows = encoder.encode(TEXTS)
    torch.testing.assert_close(rows[0], rows[5], atol=0, rtol=0)
    torch.testing.assert_close(encoder.encode(TEXTS[::-1], batch_size=2), rows.flip(0), atol=1e-6, rtol=1e-5)
    torch.testing.assert_close(encoder.encode(['cat']), rows[:1], atol=1e-6, rtol=1e-5)
    assert encoder.encode([]).shape == (0, 24)
    with pytest.raises(ValueError, match="got the string 'cat'"):
        encoder.encode('cat')
    with pytest.raises(ValueError, match='at least one text'):
        encoder.encode_tokens([])


def test_batches_of_no_text_are_refused(tmp_path: Path) -> None:
    encoder = TextEncoder(write_architecture(tmp_path / 'arch.json'), 'random:1')
    with pytest.raises(ValueError, match='batch_size must be at least 1, got 0'):
        encoder.encode(['cat'], batch_size=0)


def test_long_text_keeps_its_end_and_is_mentioned_once(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    encoder = TextEncoder(write_folder(tmp_path / 'clip'))
    exact, long = ' '.join(['dog'] * 16), ' '.join(['dog'] * 17)
    with caplog.at_level(logging.WARNING):
        whole = encoder.encode([exact])
        assert not caplog.records
        cut = encoder.encode([long, 'cat'])
        encoder.encode([long + ' dog'])
    assert len(caplog.records) == 1
    assert 'longer than the 18 tokens' in caplog.records[0].getMessage()
    torch.testing.assert_close(cut[:1], whole, atol=1e-6, rtol=1e-5)
    assert encoder.tokenize([long])[0][0, -1] == 49407


def test_encoder_is_frozen_and_stays_in_eval_mode(tmp_path: Path) -> None:
    encoder = TextEncoder(write_folder(tmp_path / 'clip'))
    nn.ModuleList([encoder]).train()
    assert not encoder.training
    assert not any(parameter.requires_grad for parameter in encoder.parameters())
    assert not any(module.training for module in encoder.modules())
    assert not encoder.encode(['cat']).requires_grad
    with torch.autocast('cpu', torch.bfloat16):
        torch.testing.assert_close(encoder.encode(['cat', 'dog']), encoder.encode(['cat', 'dog']))
        assert encoder.encode(['cat']).dtype == torch.float32


def test_reduced_precision_is_close(tmp_path: Path) -> None:
    folder = write_folder(tmp_path / 'clip')
    exact = TextEncoder(folder)
    rough = TextEncoder(folder, dtype='bfloat16')
    assert next(rough.parameters()).dtype == torch.bfloat16
    assert next(exact.parameters()).dtype == torch.float32
    assert rough.fingerprint == exact.fingerprint
    vectors = rough.encode(TEXTS)
    assert vectors.dtype == torch.float32
    assert torch.cosine_similarity(vectors, exact.encode(TEXTS)).min() > 0.99
    with pytest.raises(ValueError, match="dtype 'float64'"):
        TextEncoder(folder, dtype='float64')


# --- loading ------------------------------------------------------------------------------------------------


def openai_layout(model: nn.Module) -> dict[str, Tensor]:
    """Weights as OpenAI's archives hold them: half precision, with three scalars beside them."""
    tensors = {
        key: tensor.half() if tensor.is_floating_point() else tensor
        for key, tensor in model.state_dict().items()
    }
    sizes = {'input_resolution': 64, 'context_length': 18, 'vocab_size': 49408}
    return tensors | {key: torch.tensor(value) for key, value in sizes.items()}


def test_openai_layout_loads_with_its_activation(tmp_path: Path) -> None:
    plain = write_architecture(tmp_path / 'plain.json')
    quick = write_architecture(tmp_path / 'quick.json', quick_gelu=True)
    model = build_clip(quick, 'random:5').model.half().float().eval()
    torch.save(openai_layout(model), tmp_path / 'openai.pt')
    clip = load_clip(plain, tmp_path / 'openai.pt')
    assert clip.config['model_cfg']['quick_gelu'] is True
    with torch.no_grad():
        tokens = clip.tokenizer(TEXTS)
        torch.testing.assert_close(clip.model.encode_text(tokens), model.encode_text(tokens), atol=0, rtol=0)
        pixels = torch.rand(2, 3, 64, 64)
        torch.testing.assert_close(
            clip.model.encode_image(pixels), model.encode_image(pixels), atol=0, rtol=0
        )
    assert load_clip(quick, tmp_path / 'openai.pt').fingerprint == clip.fingerprint


def test_all_ways_to_name_the_same_model_agree(tmp_path: Path) -> None:
    folder = write_folder(tmp_path / 'clip')
    architecture, weights = tmp_path / 'clip.json', folder / 'open_clip_model.safetensors'
    tensors = safetensors.torch.load_file(weights)
    torch.save(tensors, tmp_path / 'plain.pt')
    torch.save(
        {'epoch': 3, 'state_dict': {f'module.{k}': v for k, v in tensors.items()}}, tmp_path / 'run.pt'
    )
    fingerprints = {
        load_clip(str(folder)).fingerprint,
        load_clip(architecture, weights).fingerprint,
        load_clip(architecture, tmp_path / 'plain.pt').fingerprint,
        load_clip(architecture, tmp_path / 'run.pt').fingerprint,
        load_clip(folder, weights).fingerprint,
        load_clip(architecture, 'random:1').fingerprint,
    }
    assert len(fingerprints) == 1
    assert re.fullmatch('[0-9a-f]{16}', fingerprints.pop())


def test_fingerprint_sees_weights_architecture_and_pixels(tmp_path: Path) -> None:
    path = write_architecture(tmp_path / 'a.json')
    base = build_clip(path, 'random:1').fingerprint
    assert build_clip(path, 'random:2').fingerprint != base
    spelled_out = {'context_length': 18, 'mlp_ratio': 4.0, 'pool_type': 'argmax'}
    assert (
        build_clip(write_architecture(tmp_path / 'b.json', text_cfg=spelled_out), 'random:1').fingerprint
        == base
    )
    content = {
        'model_cfg': json.loads(path.read_text()),
        'preprocess_cfg': {'mean': [0.5] * 3, 'std': [0.5] * 3},
    }
    path.write_text(json.dumps(content))
    other = build_clip(path, 'random:1')
    assert other.mean == (0.5, 0.5, 0.5)
    assert other.fingerprint != base


def test_text_towers_of_the_old_layout_are_renamed(tmp_path: Path) -> None:
    root = build_clip(write_architecture(tmp_path / 'root.json'), 'random:1').model.eval()
    torch.save(root.state_dict(), tmp_path / 'root.pt')
    custom = load_clip(write_architecture(tmp_path / 'custom.json', custom_text=True), tmp_path / 'root.pt')
    with torch.no_grad():
        tokens = custom.tokenizer(TEXTS)
        torch.testing.assert_close(custom.model.encode_text(tokens), root.encode_text(tokens))


def test_shared_until_the_file_changes(tmp_path: Path) -> None:
    folder = write_folder(tmp_path / 'clip')
    first = load_clip(folder)
    assert load_clip(folder) is first
    assert load_clip(str(folder), dtype='float16') is not first
    fresh = build_clip(folder)
    assert fresh.model is not first.model
    assert all(parameter.requires_grad for parameter in fresh.model.parameters())
    with torch.no_grad():
        fresh.model.logit_scale += 1
    save_clip(folder, fresh.model, fresh.config)
    assert load_clip(folder).fingerprint != first.fingerprint


def test_random_weights_leave_the_generator_alone(tmp_path: Path) -> None:
    path = write_architecture(tmp_path / 'a.json')
    torch.manual_seed(7)
    wanted = torch.rand(3)
    torch.manual_seed(7)
    build_clip(path, 'random:1')
    torch.testing.assert_close(torch.rand(3), wanted)


def test_save_in_half_precision_and_channels_last(tmp_path: Path) -> None:
    clip = build_clip(write_architecture(tmp_path / 'a.json'), 'random:1')
    clip.model.to(memory_format=torch.channels_last)
    save_clip(tmp_path / 'half', clip.model, clip.config['model_cfg'], dtype=torch.float16)
    stored = safetensors.torch.load_file(tmp_path / 'half' / 'open_clip_model.safetensors')
    assert stored['visual.conv1.weight'].dtype == torch.float16
    assert stored['visual.bn1.num_batches_tracked'].dtype == torch.int64
    again = load_clip(tmp_path / 'half')
    assert next(again.model.parameters()).dtype == torch.float32
    torch.testing.assert_close(again.model.visual.conv1.weight, clip.model.visual.conv1.weight.half().float())


def test_named_architecture_of_open_clip_loads_a_local_file(tmp_path: Path) -> None:
    torch.manual_seed(0)
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')
        peer = open_clip.create_model('ViT-S-32-alt').eval()
    safetensors.torch.save_file(peer.state_dict(), tmp_path / 'weights.safetensors')
    encoder = TextEncoder('ViT-S-32-alt', tmp_path / 'weights.safetensors')
    with torch.no_grad():
        wanted = peer.encode_text(open_clip.get_tokenizer('ViT-S-32-alt')(TEXTS))
    torch.testing.assert_close(encoder.encode(TEXTS), wanted, atol=5e-6, rtol=1e-4)


@pytest.mark.parametrize(
    ('model', 'pretrained', 'error', 'message'),
    [
        ('ViT-B-33', 'random:0', ValueError, "'ViT-B-33' is neither an architecture.*did you mean ViT-B-32"),
        ('RN50', None, ValueError, "no weights are named for CLIP 'RN50'"),
        ('RN50', 'random:x', ValueError, "random weights are named 'random:SEED'.*'random:x'"),
        (
            'RN50',
            'opena',
            ValueError,
            "'opena' is neither a weights file nor a release.*releases: openai",
        ),
        ('RN50', 'missing/clip.pt', FileNotFoundError, r'weights file missing/clip\.pt .* does not exist'),
        ('missing.json', 'random:0', FileNotFoundError, r'missing\.json does not exist'),
    ],
)
def test_bad_names_are_refused(model: str, pretrained: str, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        load_clip(model, pretrained)


def test_release_tag_offline_ends_in_one_line(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr('huggingface_hub.constants.HF_HUB_CACHE', str(tmp_path))
    monkeypatch.setattr('huggingface_hub.constants.HF_HUB_OFFLINE', True)
    for model, pretrained in (('ViT-B-32', 'openai'), ('hf-hub:someone/clip', None)):
        with pytest.raises(
            FileNotFoundError, match='is not in the local cache and cannot be downloaded'
        ) as caught:
            load_clip(model, pretrained)
        assert '\n' not in str(caught.value)


def test_bad_files_are_refused(tmp_path: Path) -> None:
    path = write_architecture(tmp_path / 'a.json')
    clip = build_clip(path, 'random:1')
    (tmp_path / 'empty').mkdir()
    with pytest.raises(FileNotFoundError, match=r'empty.open_clip_config\.json does not exist'):
        load_clip(tmp_path / 'empty')
    (tmp_path / 'empty' / 'open_clip_config.json').write_text(path.read_text())
    with pytest.raises(FileNotFoundError, match='holds 0 weights files'):
        load_clip(tmp_path / 'empty')
    (tmp_path / 'b.json').write_text('{"embed_dim": 3}')
    with pytest.raises(ValueError, match=r'b\.json is no CLIP architecture: it lacks vision_cfg, text_cfg'):
        load_clip(tmp_path / 'b.json', 'random:0')
    (tmp_path / 'b.json').write_text('{')
    with pytest.raises(ValueError, match=r'b\.json is no valid JSON'):
        load_clip(tmp_path / 'b.json', 'random:0')
    write_architecture(tmp_path / 'b.json', text_cfg={'widht': 3})
    with pytest.raises(ValueError, match=r'cannot build the CLIP of .*widht'):
        load_clip(tmp_path / 'b.json', 'random:0')
    write_architecture(tmp_path / 'b.json', text_cfg={'width': 64})
    torch.save(clip.model.state_dict(), tmp_path / 'weights.pt')
    with pytest.raises(ValueError, match=r'weights\.pt does not fit CLIP'):
        load_clip(tmp_path / 'b.json', tmp_path / 'weights.pt')
    torch.save({'other': torch.zeros(3)}, tmp_path / 'other.pt')
    with pytest.raises(ValueError, match=r'other\.pt'):
        load_clip(path, tmp_path / 'other.pt')


class Payload:
    def __reduce__(self) -> tuple[Any, ...]:
        return (exec, ("raise SystemExit('the payload ran')",))


@pytest.mark.filterwarnings('ignore:.*torch.jit:FutureWarning')
def test_code_in_weights_files_does_not_run(tmp_path: Path) -> None:
    path = write_architecture(tmp_path / 'a.json')
    torch.save({'state_dict': Payload()}, tmp_path / 'trap.pt')
    with pytest.raises(ValueError, match=r'trap\.pt: refused'):
        load_clip(path, tmp_path / 'trap.pt')
    script = torch.jit.script(nn.Linear(2, 2))
    torch.jit.save(script, tmp_path / 'program.pt')
    with pytest.raises(ValueError, match=r'program\.pt belongs to another model: none of its 2 tensors'):
        load_clip(path, tmp_path / 'program.pt')


@pytest.mark.parametrize(
    'changes',
    [
        {},
        {'custom_text': True, 'text_cfg': {'pool_type': 'eos', 'eos_id': 49407}},
        {'custom_text': True, 'text_cfg': {'no_causal_mask': True, 'pool_type': 'last'}},
        {'custom_text': True, 'text_cfg': {'no_causal_mask': True, 'pool_type': 'first'}},
    ],
    ids=['argmax', 'eos', 'last', 'first'],
)
def test_token_vectors_equal_token_ids_forward_and_gradient(tmp_path: Path, changes: dict[str, Any]) -> None:
    loaded = build_clip(write_architecture(tmp_path / 'clip.json', **changes), 'random:1')
    tower = TokenTower(loaded.model.text if changes else loaded.model)
    token_ids = loaded.tokenizer(TEXTS)
    lengths = tower.needed_lengths(token_ids)
    token_ids = token_ids[:, : int(lengths.max())]

    def gradients(found: Tensor) -> dict[str, Tensor]:
        tower.zero_grad()
        found.square().sum().backward()
        return {name: p.grad.clone() for name, p in tower.named_parameters() if p.grad is not None}

    by_ids = tower(token_ids)
    wanted = gradients(by_ids)
    by_vectors = tower.forward_embeddings(tower.embed(token_ids), lengths)
    torch.testing.assert_close(by_vectors, by_ids)
    found = gradients(by_vectors)
    assert found.keys() == wanted.keys()
    assert wanted['token_embedding.weight'].abs().sum() > 0
    for name, gradient in wanted.items():
        torch.testing.assert_close(found[name], gradient, msg=name)


def test_learned_context_gets_a_gradient_and_padding_none(tmp_path: Path) -> None:
    """CoOp's case: context vectors [M, W] between the start token and the class name."""
    loaded = build_clip(write_architecture(tmp_path / 'clip.json'), 'random:1')
    tower = TokenTower(loaded.model).requires_grad_(False)
    token_ids = loaded.tokenizer(['cat', 'a large red dog'])
    vectors = tower.embed(token_ids)
    context = torch.randn(2, vectors.shape[2], requires_grad=True)
    prompts = torch.cat([vectors[:, :1], context.expand(2, -1, -1), vectors[:, 1:-2]], dim=1)
    prompts.retain_grad()
    lengths = tower.needed_lengths(token_ids) + len(context)
    tower.forward_embeddings(prompts, lengths).square().sum().backward()
    assert prompts.grad is not None
    for row, length in enumerate(lengths.tolist()):
        assert prompts.grad[row, :length].abs().sum(-1).gt(0).all()
        assert not prompts.grad[row, length:].any()
    assert context.grad is not None
    torch.testing.assert_close(context.grad, prompts.grad[:, 1:3].sum(0))
