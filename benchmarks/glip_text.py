"""GLIP's text path: what building prompts in the data loader costs there, and saves in the training step.

    python tools/make_shapes.py --out data/shapes
    OMP_NUM_THREADS=1 python benchmarks/glip_text.py

Loads batches of glip_shapes.py with and without ``ovd.BuildPrompt`` and computes their losses, which must be
equal. Times are CPU seconds of the process.
"""

import argparse
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import torch

ROOT = Path(__file__).resolve().parent.parent


def main() -> None:
    """Print a line per measurement."""
    parser = argparse.ArgumentParser(
        description='Time GLIP with prompts built in the loader and in the step.'
    )
    parser.add_argument('--config', default=str(ROOT / 'configs/shapes/grounding/glip_shapes.py'))
    parser.add_argument('--data', help='data set to read instead of that of the config')
    parser.add_argument('--rounds', type=int, default=9, help='default: %(default)s')
    args = parser.parse_args()

    from mmdet.utils import register_all_modules
    from mmengine.dataset import pseudo_collate

    from ovd.config import load_config
    from ovd.randomness import seed_generators
    from ovd.registry import DATASETS, MODELS
    from ovd.training.options import share_text_encoder

    register_all_modules(init_default_scope=True)
    config = load_config(args.config)
    plain = config.train_dataloader.dataset.copy()
    plain = DATASETS.build(_with_root(plain, args.data))
    share_text_encoder(config)
    prepared = DATASETS.build(_with_root(config.train_dataloader.dataset, args.data))
    torch.manual_seed(0)
    model = MODELS.build(config.model).train()
    size = config.train_dataloader.batch_size

    def load(dataset: Any, number: int) -> list[Any]:
        samples = []
        for row in range(size):
            seed_generators(0, number, row)
            samples.append(dataset[(number * size + row) * 7919 % len(dataset)])
        return samples

    def step(samples: list[Any]) -> float:
        batch = model.data_preprocessor(pseudo_collate(samples), True)
        loss, _ = model.parse_losses(model(**batch, mode='loss'))
        loss.backward()
        return float(loss.detach())

    def text(samples: list[Any]) -> None:
        batch = model.data_preprocessor(pseudo_collate(samples), True)
        model._targets(*model._training_samples(batch['data_samples']))

    times: dict[str, list[tuple[float, float]]] = {'load': [], 'text': [], 'step': []}
    for number in range(args.rounds + 2):  # two rounds fill caches
        loaded = [timed(partial(load, dataset, number)) for dataset in (plain, prepared)]
        losses = []
        for kind, run in (('text', text), ('step', step)):
            found = [timed(partial(run, batch)) for _, batch in loaded]
            times[kind].append((found[0][0], found[1][0]))
            losses = [result for _, result in found]
        times['load'].append((loaded[0][0], loaded[1][0]))
        assert losses[0] == losses[1], f'losses differ: {losses}'
    for kind, pairs in times.items():
        before, after = (median(column) for column in zip(*pairs[2:]))
        ratio = median(second / first for first, second in pairs[2:])
        print(f'{kind}: {1000 * before:.1f} ms -> {1000 * after:.1f} ms per batch of {size}, {ratio:.2f}x')


def timed(run: Callable[[], Any]) -> tuple[float, Any]:
    start = time.process_time()
    result = run()
    return time.process_time() - start, result


def _with_root(node: Any, root: str | None) -> Any:
    """A data set's config whose files lie in ``root``, without shared parts."""
    if isinstance(node, dict):
        changed = {key: _with_root(value, root) for key, value in node.items()}
        return changed | ({'data_root': root} if root and 'data_root' in changed else {})
    return [_with_root(part, root) for part in node] if isinstance(node, list | tuple) else node


if __name__ == '__main__':
    main()
