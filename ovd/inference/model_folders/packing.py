"""Model folders out of a config and a checkpoint, as after a training."""

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mmengine.config import Config

from ...files import sha256_file
from ..answering import AnswerOptions
from ..predictor import Predictor
from .model_folder import ModelCard

ANSWERING = 'answering.json'


def pack(
    config: str | os.PathLike[str] | Config,
    checkpoint: str | os.PathLike[str],
    out: str | os.PathLike[str],
    card: ModelCard | None = None,
    answering: Mapping[str, Any] | None = None,
    replace: bool = False,
    name: str | None = None,
) -> Path:
    """Write the model folder of a trained model; ``Predictor.from_pretrained`` reads it anywhere.

    Args:
        config: path of a config that can be tested, or a loaded one.
        checkpoint: its weights.
        out: folder to be made.
        card: what ``MODEL_CARD.md`` tells; by default config and checkpoint.
        answering: how scores become answers; by default ``answering.json`` beside the checkpoint, if any.
        replace: put it in place of a model folder that is there.
        name: of the model, by default that of the folder.
    Returns:
        the folder.
    Raises:
        FileExistsError, FileNotFoundError, ValueError: see ``Predictor`` and ``write_model_folder``.
    """
    beside = Path(checkpoint).parent / ANSWERING
    if answering is None and beside.is_file():
        answering = json.loads(beside.read_text(encoding='utf-8'))
    predictor = Predictor(config, checkpoint, device='cpu')
    if answering is not None:
        predictor.options = AnswerOptions.from_dict(answering, str(beside))
    if card is None:
        source = config.filename if isinstance(config, Config) else config
        card = ModelCard(
            title=f'{type(predictor.model).__name__}, packed from a checkpoint.',
            origin=f'config {Path(str(source)).name}, checkpoint {Path(checkpoint).name} '
            f'(SHA-256 {sha256_file(checkpoint)})',
        )
    return predictor.save_pretrained(out, card, replace, name)


def pack_training(config: Config, checkpoint: str | os.PathLike[str], name: str) -> Path | None:
    """Write the model folder of a training into its work directory, as ``model``.

    Args:
        config: of the training; its model answers for words and it has a test pipeline, else there is nothing
            to pack.
        checkpoint: the trained weights.
        name: of the model.
    Returns:
        the folder; None for a model that does not answer for words.
    Raises:
        FileNotFoundError, OSError, ValueError: see ``pack``; the training is done all the same.
    """
    from ...models.base import OpenVocabularyModel
    from ...registry import MODELS

    kind = MODELS.get(config.model.type)
    is_packable = isinstance(kind, type) and issubclass(kind, OpenVocabularyModel)
    if not is_packable or config.get('test_dataloader') is None:
        return None
    return pack(config, checkpoint, Path(config.work_dir) / 'model', replace=True, name=name)
