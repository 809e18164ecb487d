"""TIPSv2 through transformers: patches and words of a tiny random model."""

from pathlib import Path
from typing import Any

import pytest
import torch

from ovd.encoders.dense.tips import TipsDense, TipsText
from ovd.encoders.dense.tower import build_dense_tower

transformers: Any = pytest.importorskip('transformers')
if not hasattr(transformers, 'Tipsv2Model'):
    pytest.skip('transformers is older than TIPSv2', allow_module_level=True)


@pytest.fixture(scope='module')
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp('tips')
    common = {'hidden_size': 16, 'num_hidden_layers': 2, 'num_attention_heads': 2}
    torch.manual_seed(0)
    config = transformers.Tipsv2Config(
        text_config={**common, 'intermediate_size': 32, 'vocab_size': 32, 'max_position_embeddings': 8},
        vision_config={**common, 'image_size': 28, 'patch_size': 14},
    )
    transformers.Tipsv2Model(config).save_pretrained(path)
    words = ['<pad>', '<unk>', *'▁acdot']
    tokenizer = transformers.Tipsv2Tokenizer(vocab={word: index for index, word in enumerate(words)})
    tokenizer.save_pretrained(path)
    return path


@torch.no_grad()
def test_patches_are_the_last_tokens(folder: Path) -> None:
    tower = build_dense_tower({'kind': 'tips', 'model': folder})
    assert isinstance(tower, TipsDense)
    batch = torch.rand(2, 3, 28, 42)
    found = tower(batch)
    assert found.shape == (2, 16, 2, 3)
    assert tower.stride == 14
    tokens = tower.vision(batch).last_hidden_state[:, 2:]  # a class token and a register come first
    torch.testing.assert_close(found[0, :, 1, 2], torch.nn.functional.normalize(tokens[0, 5], dim=0))


def test_words_share_the_fingerprint_of_the_images(folder: Path) -> None:
    text = TipsText(folder)
    vectors = text.encode(['a cat', 'a dot', 'a cat'], batch_size=2)
    assert vectors.shape == (3, 16)
    torch.testing.assert_close(vectors[0], vectors[2])
    assert not torch.allclose(vectors[0], vectors[1])
    assert text.fingerprint == TipsDense(folder).fingerprint


def test_other_folders_are_refused(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r'config\.json'):
        TipsDense(tmp_path)
    (tmp_path / 'config.json').write_text('{"model_type": "bert"}')
    with pytest.raises(ValueError, match='bert'):
        TipsDense(tmp_path)
