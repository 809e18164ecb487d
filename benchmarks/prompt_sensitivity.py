"""How much GLIP's answers depend on the order of the class names, and on how they are cut into sentences.

    python benchmarks/prompt_sensitivity.py configs/glip_shapes_detection.py work_dirs/glip_shapes/latest.pth
    python benchmarks/prompt_sensitivity.py CONFIG CHECKPOINT --orders 5 --cuts 1 6 12 --images 100

Image and text are fused, so a word's score depends on the other words of its sentence. The test data of the
config are asked for in the order of its vocabulary, in other orders, and a few names at a time. Compared is
the best score of every class on every image where it reaches --floor under either question, and the metric.
"""

import argparse
import copy
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

import ovd  # noqa: F401  (before any host is imported)
from ovd.cli.console import KeyValue, run_tool
from ovd.text.vocabulary import Vocabulary

if TYPE_CHECKING:
    from ovd.models.glip.detector import GLIP


@dataclass(frozen=True)
class Variant:
    """The class names as they are asked for: places in the vocabulary, and how many stand in a sentence."""

    title: str
    order: tuple[int, ...]
    cut: int | None


@dataclass(frozen=True)
class Answers:
    """What a variant gives.

    Attributes:
        best: [I, K], the best score of each class on each image, 0 where none is found.
        metrics: of the config's evaluator.
        sentences: that an image is read with.
    """

    best: np.ndarray
    metrics: dict[str, float]
    sentences: int


def parse_args(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument('config')
    parser.add_argument('checkpoint')
    parser.add_argument('--orders', type=int, default=3, help='random orders; default: %(default)s')
    parser.add_argument('--cuts', type=int, nargs='*', default=[1, 6, 12], help='names in a sentence')
    parser.add_argument('--images', type=int, help='only the first so many; default: all')
    parser.add_argument('--floor', type=float, default=0.1, help='default: %(default)s')
    parser.add_argument('--metric', help="default: the evaluator's first")
    parser.add_argument('--seed', type=int, default=0, help='of the orders; default: %(default)s')
    parser.add_argument('--device', default='cpu', help='default: %(default)s')
    parser.add_argument('--cfg-options', nargs='+', action=KeyValue, default={}, metavar='KEY=VALUE')
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> None:
    args = parse_args(argv)
    if min([args.orders + 1, *args.cuts]) < 1:
        raise ValueError('--orders must not be negative, --cuts at least 1')

    from ovd.config import load_config
    from ovd.inference.predictor import Predictor
    from ovd.models.glip.detector import GLIP

    config = load_config(args.config, args.cfg_options)
    predictor = Predictor(config, args.checkpoint, args.device)
    if not isinstance(predictor.model, GLIP):
        raise ValueError(f'{type(predictor.model).__name__} does not read class names in sentences')
    vocabulary = predictor.vocabulary
    found: list[tuple[str, Answers]] = []
    for variant in variants(len(vocabulary), predictor.model.names_per_prompt, args):
        print(f'{variant.title} ...', file=sys.stderr)
        found.append((variant.title, ask(predictor.model, config, vocabulary, variant, args.images)))
    print(report(found, args.floor, args.metric))


def variants(names: int, cut: int | None, args: argparse.Namespace) -> list[Variant]:
    """The config's own question first."""
    as_given = tuple(range(names))
    random = np.random.default_rng(args.seed)
    orders = [tuple(random.permutation(names).tolist()) for _ in range(args.orders)]
    return [
        Variant('as configured', as_given, cut),
        *(Variant(f'random order {number}', order, cut) for number, order in enumerate(orders, 1)),
        *(Variant(f'{count} names in a sentence', as_given, count) for count in args.cuts),
    ]


@torch.no_grad()
def ask(model: 'GLIP', config: Any, vocabulary: Vocabulary, variant: Variant, images: int | None) -> Answers:
    """Run the config's test data and evaluator; labels are brought back to the order of the vocabulary."""
    from mmengine.evaluator import Evaluator
    from mmengine.registry import DefaultScope
    from mmengine.runner import Runner

    from ovd.datasets.sample_traits import provides_class_names

    model.names_per_prompt = variant.cut
    model.set_vocabulary(Vocabulary([vocabulary.names[place] for place in variant.order]))
    place_of = torch.tensor(variant.order)
    with DefaultScope.overwrite_default_scope(config.get('default_scope', 'mmdet')):
        options = copy.deepcopy(config.test_dataloader)
        options.update(num_workers=0, persistent_workers=False)
        loader = Runner.build_dataloader(options, seed=0)
        if provides_class_names(loader.dataset):
            raise ValueError(
                f'{type(loader.dataset).__name__} asks for the words of its own files, not for class names: '
                'take a config that tests on them'
            )
        evaluator = Evaluator(copy.deepcopy(config.test_evaluator))
        evaluator.dataset_meta = loader.dataset.metainfo
        rows: list[np.ndarray] = []
        for batch in loader:
            samples = model.test_step(batch)
            for sample in samples:
                instances = sample.pred_instances
                instances.labels = place_of.to(instances.labels.device)[instances.labels]
                best = np.zeros(len(vocabulary))
                np.maximum.at(best, instances.labels.cpu().numpy(), instances.scores.cpu().numpy())
                rows.append(best)
            evaluator.process(samples, batch)
            if images is not None and len(rows) >= images:
                break
        metrics = evaluator.evaluate(len(rows))
    numbers = {key: float(value) for key, value in metrics.items() if isinstance(value, int | float)}
    return Answers(np.array(rows), numbers, len(model._class_prompts))


def report(found: Sequence[tuple[str, Answers]], floor: float, metric: str | None) -> str:
    """A Markdown table; changes are against the first."""
    base = found[0][1]
    metric = next(iter(base.metrics)) if metric is None else metric
    if metric not in base.metrics:
        raise ValueError(f'unknown metric {metric!r}, expected one of {", ".join(base.metrics)}')
    lines = [
        f'| question | sentences | {metric} | mean change of a score | largest |',
        '|---|---|---|---|---|',
    ]
    for title, answers in found:
        mean, largest = changes(base.best, answers.best, floor)
        figure = f'{answers.metrics[metric]:.3f}'
        lines.append(f'| {title} | {answers.sentences} | {figure} | {mean:.3f} | {largest:.3f} |')
    counted = int((base.best >= floor).sum())
    return '\n'.join(
        [*lines, '', f'{len(base.best)} images, {counted} scores of at least {floor} in the first']
    )


def changes(base: np.ndarray, other: np.ndarray, floor: float) -> tuple[float, float]:
    """Mean and largest difference of two score tables where either reaches ``floor``; 0 where none does."""
    counted = np.maximum(base, other) >= floor
    if not counted.any():
        return 0.0, 0.0
    differences = np.abs(base - other)[counted]
    return float(differences.mean()), float(differences.max())


if __name__ == '__main__':
    sys.exit(run_tool(main))
