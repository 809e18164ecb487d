"""What a foreign folder may choose: no option, name or code of it reaches the hub or an interpreter."""

import json
from pathlib import Path
from typing import Any

import pytest

from ovd.encoders.loading import TEXT_MODEL_FOLDER, build_clip, load_clip, save_clip
from ovd.encoders.tokens.bert_tokens import BertText
from tests.toys.bert import write_bert
from tests.toys.clip import write_architecture

transformers = pytest.importorskip('transformers')


@pytest.fixture(autouse=True)
def empty_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A hub cache without anything in it, and no network."""
    monkeypatch.setattr('huggingface_hub.constants.HF_HUB_CACHE', str(tmp_path / 'hub'))
    monkeypatch.setattr('huggingface_hub.constants.HF_HUB_OFFLINE', True)


def folder_with(folder: Path, **text_cfg: Any) -> Path:
    """A CLIP in a folder whose configuration says more of its tokenizer."""
    clip = build_clip(write_architecture(folder.parent / 'plain.json'), 'random:0')
    save_clip(folder, clip.model, clip.config)
    config = folder / 'open_clip_config.json'
    content = json.loads(config.read_text())
    content['model_cfg']['text_cfg'].update(text_cfg)
    config.write_text(json.dumps(content))
    return folder


def add_payload(folder: Path, file: str, field: str = 'AutoTokenizer') -> Path:
    """Code beside the JSON, and the JSON field by which transformers would run it."""
    marker = folder / 'payload_ran'
    (folder / 'evil.py').write_text(f'open({str(marker)!r}, "w").close()\nclass Evil: pass\n')
    path = folder / file
    content = json.loads(path.read_text()) if path.is_file() else {}
    path.write_text(json.dumps({**content, 'auto_map': {field: ['evil.Evil', 'evil.Evil']}}))
    return marker


@pytest.mark.parametrize(
    ('text_cfg', 'message'),
    [
        ({'tokenizer_kwargs': {'bpe_path': '/etc/passwd'}}, r'tokenizer_kwargs\.bpe_path'),
        ({'tokenizer_kwargs': 3}, 'tokenizer_kwargs is 3'),
        ({'tokenizer_kwargs': {'clean': {'a': 1}}}, r'tokenizer_kwargs\.clean'),
        (
            {'hf_tokenizer_name': 'own', 'tokenizer_kwargs': {'trust_remote_code': True}},
            r'tokenizer_kwargs\.trust_remote_code',
        ),
        ({'hf_tokenizer_name': 'own', 'tokenizer_kwargs': {'cache_dir': '/x'}}, r'\.cache_dir'),
        ({'hf_tokenizer_name': 'own', 'tokenizer_mode': 'own.py'}, r"tokenizer_mode 'own\.py'"),
    ],
)
def test_only_known_options_reach_a_tokenizer(tmp_path: Path, text_cfg: dict[str, Any], message: str) -> None:
    clip = load_clip(folder_with(tmp_path / 'clip', **text_cfg))
    with pytest.raises(ValueError, match=message) as caught:
        _ = clip.tokenizer
    assert '\n' not in str(caught.value)


def test_allowed_options_still_work(tmp_path: Path) -> None:
    clip = load_clip(folder_with(tmp_path / 'clip', tokenizer_kwargs={'clean': 'canonicalize'}))
    plain = load_clip(folder_with(tmp_path / 'other'))
    assert clip.tokenizer(['A, cat!']).equal(plain.tokenizer(['a cat']))


def test_a_tokenizer_that_would_be_fetched_is_named(tmp_path: Path) -> None:
    clip = load_clip(folder_with(tmp_path / 'clip', hf_tokenizer_name='someone/words'))
    with pytest.raises(FileNotFoundError, match=r'hf_tokenizer_name.*tokenizer\.json.*clip') as caught:
        _ = clip.tokenizer
    assert '\n' not in str(caught.value)


def test_the_tokenizer_of_the_folder_is_read(tmp_path: Path) -> None:
    folder = folder_with(tmp_path / 'clip', hf_tokenizer_name='someone/words')
    write_bert(folder)
    (folder / 'config.json').unlink()
    (folder / 'tokenizer_config.json').write_text(json.dumps({'tokenizer_class': 'BertTokenizer'}))
    token_ids = load_clip(folder).tokenizer(['red star'])
    assert token_ids.shape == (1, 18)
    assert (token_ids != 0).sum() == 4  # [CLS] red star [SEP]


def test_code_beside_a_tokenizer_does_not_run(tmp_path: Path) -> None:
    folder = folder_with(tmp_path / 'clip', hf_tokenizer_name='own')
    write_bert(folder)
    marker = add_payload(folder, 'tokenizer_config.json')
    with pytest.raises(ValueError, match=r'tokenizer_config\.json: auto_map'):
        _ = load_clip(folder).tokenizer
    assert not marker.exists()


@pytest.mark.parametrize('file', ['config.json', 'tokenizer_config.json'])
def test_code_beside_a_bert_does_not_run(tmp_path: Path, file: str) -> None:
    folder = write_bert(tmp_path / 'bert')
    marker = add_payload(folder, file)
    with pytest.raises(ValueError, match=f'{file}: auto_map'):
        BertText(folder)
    assert not marker.exists()


@pytest.mark.parametrize(
    'field',
    [
        {'attn_implementation': 'someone/kernel'},
        {'_attn_implementation': 'someone/kernel'},
        {'attn_implementation': {'text': 'someone/kernel'}},
        {'text_config': {'attn_implementation': 'someone/kernel'}},
    ],
)
def test_compiled_kernels_of_a_bert_are_not_fetched(tmp_path: Path, field: dict[str, Any]) -> None:
    folder = write_bert(tmp_path / 'bert')
    path = folder / 'config.json'
    content = json.loads(path.read_text())
    path.write_text(json.dumps(content | field))
    with pytest.raises(ValueError, match=r'config\.json: _?attn_implementation') as caught:
        BertText(folder)
    assert '\n' not in str(caught.value)
    path.write_text(json.dumps(content | {'attn_implementation': 'sdpa'}))
    assert BertText(folder).encode(['red star']).shape == (1, 24)


def test_a_bert_is_found_by_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv('OVD_HOME', str(tmp_path))
    write_bert(tmp_path / 'small-bert')
    assert BertText('small-bert').folder == tmp_path / 'small-bert'


@pytest.mark.parametrize('name', ['hf-hub:someone/vit', 'local-dir:/somewhere', 'someone/vit'])
def test_an_image_tower_that_would_be_fetched_is_refused(tmp_path: Path, name: str) -> None:
    path = write_architecture(tmp_path / 'a.json', vision_cfg={'timm_model_name': name, 'image_size': 32})
    with pytest.raises(ValueError, match=rf'timm_model_name .{name}'):
        build_clip(path, 'random:0')


def test_a_text_tower_of_transformers_needs_its_files(tmp_path: Path) -> None:
    folder = tmp_path / 'clip'
    write_architecture(folder / 'open_clip_config.json')
    content = json.loads((folder / 'open_clip_config.json').read_text())
    content['text_cfg'] = {
        'hf_model_name': 'xlm-roberta-base',
        'hf_tokenizer_name': 'xlm-roberta-base',
        'hf_pooler_type': 'mean_pooler',
    }
    (folder / 'open_clip_config.json').write_text(json.dumps(content))
    with pytest.raises(
        FileNotFoundError, match=rf'hf_model_name.*config\.json.*{TEXT_MODEL_FOLDER}.*tokenizer\.json'
    ) as caught:
        build_clip(folder, 'random:0')
    assert '\n' not in str(caught.value)

    settings = {'hidden_size': 16, 'num_hidden_layers': 1, 'num_attention_heads': 2, 'intermediate_size': 32}
    transformers.XLMRobertaConfig(vocab_size=64, **settings).save_pretrained(folder / TEXT_MODEL_FOLDER)
    clip = build_clip(folder, 'random:0')
    assert clip.model.text.transformer.config.model_type == 'xlm-roberta'
    with pytest.raises(FileNotFoundError, match='hf_tokenizer_name'):
        _ = clip.tokenizer

    marker = add_payload(folder / TEXT_MODEL_FOLDER, 'config.json', 'AutoModel')
    with pytest.raises(ValueError, match=r'config\.json: auto_map'):
        build_clip(folder, 'random:0')
    assert not marker.exists()
