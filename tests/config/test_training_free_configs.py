"""Configs without training load, name their weights, and describe data sets that can be built."""

from pathlib import Path

import pytest
from mmengine.registry import init_default_scope

from ovd.config import CONFIG_ROOT, check_needs, load_config
from ovd.registry import DATASETS

PATHS = sorted((CONFIG_ROOT / 'training_free').glob('*.py'))


@pytest.mark.parametrize('path', PATHS, ids=lambda path: path.stem)
def test_a_config_describes_a_test(path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    config = load_config(path)
    assert config.model.type in ('ovd.ClipSegmentor', 'ovd.ClipDetector')
    assert config.get('train_dataloader') is None or 'optim_wrapper' not in config
    init_default_scope(config.get('default_scope', 'mmdet'))
    DATASETS.build({**config.test_dataloader.dataset, 'lazy_init': True})
    if 'photos' not in path.stem:
        with pytest.raises(FileNotFoundError, match='clip_vit_b'):
            check_needs(config, 'test')
