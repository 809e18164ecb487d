"""The settings of every shipped config may stand in a model folder."""

import pytest

from ovd.config import load_config
from ovd.config.collection import collection
from ovd.inference.model_folders.model_folder import is_ours
from ovd.inference.model_folders.trusted_config import check, decode, encode
from ovd.inference.predictor import question_pipeline
from ovd.models.base import OpenVocabularyModel
from ovd.registry import MODELS


@pytest.mark.slow
def test_shipped_configs_pass_the_list_of_classes() -> None:
    """Files that they name become references; nothing else is turned away."""
    passed, refused = 0, []
    for name, path in collection().items():
        try:
            config = load_config(path)
        except FileNotFoundError:  # the tests of the configs tell
            continue
        kind = MODELS.get(config.model.type) if 'model' in config else None
        if not (isinstance(kind, type) and issubclass(kind, OpenVocabularyModel)):
            continue
        try:
            steps = question_pipeline(config)
        except ValueError:  # a config that answers no questions
            continue

        def replace(where: str, text: str) -> str:
            return 'folder:files/x' if '/' in text or text.endswith(('.json', '.txt')) else text

        content = encode({'model': config.model, 'pipeline': steps}, replace, name)
        content['model'].get('text', {}).get('encoder', {}).pop('pretrained', None)
        try:
            check(content, is_ours, where=name)
        except ValueError as error:
            refused.append(str(error))
        assert decode(content, lambda text: text)['pipeline'][0]['type'] == steps[0]['type']
        passed += 1
    assert not refused, '\n'.join(refused)
    assert passed > 40
