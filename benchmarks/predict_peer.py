"""``ovd predict``, reading, drawing and writing included, against the bare model on inputs that are ready."""

import argparse
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from timing import Figure


def compare_predict(model: torch.nn.Module, section: Any, text: Any, args: argparse.Namespace) -> Figure:
    """Pictures per second of both; the twenty best objects of a picture are drawn.

    Args:
        model: whose weights are used.
        section: its config.
        text: what is asked for.
        args: of ``speed.py``.
    """
    from ovd.checkpoints.writing import save_tensors
    from ovd.inference.pictures.sources import find_pictures
    from ovd.inference.pictures.throughput import compare
    from ovd.inference.predictor import Predictor

    count, scale = (200, (1333, 800)) if args.full else (16, (640, 384))
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_photographs(folder / 'photos', count)
        save_tensors(folder / 'model.safetensors', model.state_dict())
        predictor = Predictor(predictor_config(section, scale), folder / 'model.safetensors', args.device)
        predictor.set_vocabulary(text)
        pictures = find_pictures([str(folder / 'photos')], folder)
        bare, whole = compare(predictor, pictures, folder, workers=args.workers, rounds=args.rounds)
    return Figure(
        f'{count} pictures read, asked, drawn and written, {scale[0]} x {scale[1]}',
        f'{whole:.3g} /s',
        f'{bare:.3g} /s',
        whole / bare,
        bar=0.95,
        at_least=True,
    )


def predictor_config(model: Any, scale: tuple[int, int]) -> Any:
    """A detector's section with a test pipeline."""
    from mmengine.config import Config

    model.test_cfg.rcnn.update(score_thr=0.0, max_per_img=20)
    pipeline = [
        {'type': 'ovd.LoadImage'},
        {'type': 'Resize', 'scale': scale, 'keep_ratio': True},
        {'type': 'PackDetInputs', 'meta_keys': ('img_id', 'ori_shape', 'img_shape', 'scale_factor')},
    ]
    loader = {'dataset': {'type': 'CocoDataset', 'pipeline': pipeline}}
    return Config({'default_scope': 'mmdet', 'model': model, 'test_dataloader': loader})


def write_photographs(folder: Path, count: int) -> None:
    """JPEG files of 640 x 480 with structure at every scale, as large on disk as photographs are."""
    folder.mkdir()
    generator = np.random.default_rng(0)
    for index in range(count):
        picture = np.zeros((480, 640, 3))
        for side in (4, 16, 64, 240):
            coarse = generator.integers(0, 256, (side, side, 3), dtype=np.uint8)
            picture += np.asarray(Image.fromarray(coarse).resize((640, 480), Image.Resampling.BICUBIC))
        Image.fromarray((picture / 4).astype(np.uint8)).save(folder / f'{index:03d}.jpg', quality=92)
