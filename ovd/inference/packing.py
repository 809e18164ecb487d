"""Model folders out of a config and a checkpoint, as after a training."""

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mmengine.config import Config

from ..files import sha256_file
from .model_folder import ModelCard
from .predictor import Predictor

ANSWERING = 'answering.json'


def pack(
    config: str | os.PathLike[str] | Config,
    checkpoint: str | os.PathLike[str],
    out: str | os.PathLike[str],
    card: ModelCard | None = None,
    answering: Mapping[str, Any] | None = None,
    replace: bool = False,
) -> Path:
    """Write the model folder of a trained model; ``Predictor.from_pretrained`` reads it anywhere.

    Args:
        config: path of a config that can be tested, or a loaded one.
        checkpoint: its weights.
        out: folder to be made; its name is that of the model.
        card: what ``MODEL_CARD.md`` tells; by default config and checkpoint.
        answering: how scores become answers; by default ``answering.json`` beside the checkpoint, if any.
        replace: put it in place of a model folder that is there.
    Returns:
        the folder.
    Raises:
        FileExistsError, FileNotFoundError, ValueError: see ``Predictor`` and ``write_model_folder``.
    """
    beside = Path(checkpoint).parent / ANSWERING
    if answering is None and beside.is_file():
        answering = json.loads(beside.read_text(encoding='utf-8'))
    predictor = Predictor(config, checkpoint, device='cpu')
    predictor.answering = None if answering is None else dict(answering)
    if card is None:
        source = config.filename if isinstance(config, Config) else config
        card = ModelCard(
            title=f'{type(predictor.model).__name__}, packed from a checkpoint.',
            origin=f'config {Path(str(source)).name}, checkpoint {Path(checkpoint).name} '
            f'(SHA-256 {sha256_file(checkpoint)})',
        )
    return predictor.save_pretrained(out, card, replace)
