"""How well can novel nouns of OV-Shapes be guessed from base nouns and the vectors of a CLIP's text tower?

    python benchmarks/novel_guessing.py [--text ovd/assets/clip_tiny_shapes] [--novel heart,fish,...]

Trains a small image tower on pictures of single shapes against the text vectors of the base nouns and a
learned background vector. Pictures of novel shapes are background in training, as unlabelled objects are in
detection; afterwards all nouns compete on unseen pictures. A novel noun with a high average precision here is
guessed from words alone and a poor choice for showing what distillation adds. About 100 s on one core.
"""

import argparse
import sys
from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from open_clip.modified_resnet import ModifiedResNet
from torch import Tensor, nn
from torch.nn import functional as F

from ovd.cli.console import run_tool
from ovd.datasets.captions.clip_pairs import ShapePairs
from ovd.encoders.text_embeddings import TextEmbeddings
from ovd.encoders.text_encoder import TextEncoder
from ovd.text.vocabulary import Vocabulary

BACKGROUND = -1
TEMPERATURE = 0.03
BATCH = 96


def main(argv: Sequence[str] | None = None) -> None:
    """Train the classifier and print one row per novel noun."""
    parser = argparse.ArgumentParser(description='Guessing novel nouns from base nouns and text vectors.')
    parser.add_argument('--text', default='ovd/assets/clip_tiny_shapes', help='a CLIP folder, or random:SEED')
    parser.add_argument('--novel', help='nouns, separated by commas; by default those of the vocabulary')
    parser.add_argument(
        '--pictures', type=int, default=40000, help='size of the set to draw from (default: %(default)s)'
    )
    parser.add_argument('--steps', type=int, default=300, help='training steps (default: %(default)s)')
    parser.add_argument('--seed', type=int, default=0)
    args = parser.parse_args(argv)

    vocabulary = Vocabulary.parse('shapes')
    novel = args.novel.split(',') if args.novel else list(vocabulary.novel_names)
    is_novel = torch.tensor([name in novel for name in vocabulary.names])
    text = text_vectors(args.text, vocabulary)
    data = ShapePairs(args.pictures)
    labels = single_shape_labels(data, vocabulary.names)
    torch.manual_seed(args.seed)
    held_out = np.arange(len(data)) % 8 == 0
    scores = (
        Classifier(text[~is_novel])
        .fit(data, labels, is_novel.numpy(), ~held_out, args.steps)
        .score(data, np.flatnonzero(held_out & (labels >= BACKGROUND)), text)
    )
    report(scores, labels[held_out & (labels >= BACKGROUND)], vocabulary.names, is_novel, text)


def text_vectors(source: str, vocabulary: Vocabulary) -> Tensor:
    """Unit vectors [K, D] of the names: of a CLIP, or random ones for comparison."""
    if source.startswith('random:'):
        generator = torch.Generator().manual_seed(int(source.removeprefix('random:')))
        return F.normalize(torch.randn(len(vocabulary), 128, generator=generator), dim=-1)
    return TextEmbeddings.build(vocabulary, 'single', TextEncoder(source)).embeddings


def single_shape_labels(data: ShapePairs, names: Sequence[str]) -> NDArray[np.int64]:
    """The noun of each picture, -1 for an empty ground, -2 for pictures of two shapes."""
    codes = {name: label for label, name in enumerate(names)} | {'empty background': BACKGROUND}
    return np.array([codes.get(captions[0], -2) for captions in data.captions])


class Classifier(nn.Module):
    """Image tower whose embeddings are compared with fixed text vectors and one learned background vector."""

    def __init__(self, base_text: Tensor) -> None:
        super().__init__()
        self.base_text = base_text
        self.tower = ModifiedResNet([1, 1, 1, 1], base_text.shape[1], heads=8, image_size=64, width=16)
        self.tower.to(memory_format=torch.channels_last)
        self.background = nn.Parameter(torch.randn(base_text.shape[1]) * 0.1)

    def logits(self, data: ShapePairs, indices: NDArray[np.int64], text: Tensor) -> Tensor:
        """[N, K + 1], background last."""
        pixels = torch.from_numpy(data.images[np.sort(indices)]).permute(0, 3, 1, 2)
        embeddings = F.normalize(self.tower((pixels.float() - 118) / 66), dim=-1)
        return embeddings @ torch.cat([text, F.normalize(self.background, dim=0)[None]]).T / TEMPERATURE

    def fit(
        self,
        data: ShapePairs,
        labels: NDArray[np.int64],
        is_novel: NDArray[np.bool_],
        usable: NDArray[np.bool_],
        steps: int,
    ) -> 'Classifier':
        """Train on base nouns; novel nouns and empty grounds are background."""
        targets = np.full(len(is_novel), len(self.base_text))
        targets[~is_novel] = np.arange(len(self.base_text))
        pool = np.flatnonzero(usable & (labels >= BACKGROUND))
        optimizer = torch.optim.AdamW(self.parameters(), lr=2e-3, weight_decay=0.05)
        schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 2e-3, total_steps=steps, pct_start=0.1)
        random = np.random.default_rng(0)
        for _ in range(steps):
            batch = np.sort(random.choice(pool, BATCH, replace=False))
            target = np.where(labels[batch] == BACKGROUND, len(self.base_text), targets[labels[batch]])
            loss = F.cross_entropy(self.logits(data, batch, self.base_text), torch.from_numpy(target))
            optimizer.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(self.parameters(), 1.0)
            optimizer.step()
            schedule.step()
        return self

    @torch.no_grad()
    def score(self, data: ShapePairs, indices: NDArray[np.int64], text: Tensor) -> Tensor:
        """Probabilities [N, K + 1] of all nouns and background."""
        self.eval()
        parts = np.array_split(indices, len(indices) // 256 + 1)
        return torch.cat([self.logits(data, part, text).softmax(1) for part in parts])


def average_precision(scores: Tensor, is_right: Tensor) -> float:
    """Mean of the precision at each right answer, ranked by score."""
    right = is_right[scores.argsort(descending=True)].float()
    precision = right.cumsum(0) / torch.arange(1, len(right) + 1)
    return float((precision * right).sum() / right.sum())


def report(
    scores: Tensor, labels: NDArray[np.int64], names: Sequence[str], is_novel: Tensor, text: Tensor
) -> None:
    """Print the mean over base and novel nouns, and one row per novel noun."""
    truth = torch.from_numpy(labels)
    precision = torch.tensor([average_precision(scores[:, k], truth == k) for k in range(len(names))]) * 100
    print(
        f'average precision: base {precision[~is_novel].mean():.1f}, novel {precision[is_novel].mean():.1f}'
    )
    base = is_novel.logical_not().nonzero()[:, 0]
    span = torch.linalg.qr(text[base].T).Q
    for label in is_novel.nonzero()[:, 0].tolist():
        cosine, nearest = (text[base] @ text[label]).max(0)
        energy = float((span.T @ text[label]).square().sum())
        print(
            f'  {names[label]:10s} {precision[label]:5.1f}   nearest base noun {names[int(base[nearest])]} '
            f'(cosine {cosine:.2f}), {energy:.0%} in the span of the base nouns'
        )


if __name__ == '__main__':
    sys.exit(run_tool(main))
