"""GLIP-T against mmdet's GLIP-T of the same weights: the 1,203 names of LVIS, some pictures, time and memory.

    python benchmarks/glip_peer.py                                   # deep and shallow, about half an hour
    python benchmarks/glip_peer.py shallow --size 256 384 --pictures 2 --rounds 1
    python benchmarks/glip_peer.py --tokenizer data/weights/bert_base_uncased --size 800 1216 --device cuda

Each answer is a process of its own: peer, ours, and ours with the peer's sentences (40 names each), whose
answer must be the peer's. Processes take turns. Weights are random, of published size; seconds are those that
the process computed (on a GPU: wall), without start and loading, with the encoding of the words.
"""

import argparse
import json
import math
import os
import platform
import re
import subprocess
import sys
import tempfile
import time
import unicodedata
from collections.abc import Sequence
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch
from memory import MIB, peak_memory, reset_peak
from timing import Figure, paired_ratio, table, written

import ovd  # noqa: F401  (before any host is imported)
from ovd.cli.console import run_tool

DEPTHS = {'deep': 'glip_t_b_o365.py', 'shallow': 'glip_t_a_o365.py'}
SIDES = ('peer', 'ours', 'ours40')
NAMES_PER_PROMPT, MAX_PER_PROMPT = 40, 300
# The rest are near ties: overlaps at the threshold of suppression, ranks at the limits of numbers of boxes.
_SHARE_OF_EQUAL_BOXES = 0.98
CONFIGS = Path(__file__).resolve().parents[1] / 'configs'
Run = dict[str, Any]


def parse_args(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument('depths', nargs='*', metavar='DEPTH', help=f'default: {" ".join(DEPTHS)}')
    parser.add_argument(
        '--size', nargs=2, type=int, default=[320, 480], metavar=('H', 'W'), help='default: %(default)s'
    )
    parser.add_argument('--pictures', type=int, default=2, help='default: %(default)s')
    parser.add_argument('--names', type=int, default=1203, help='the first so many; default: %(default)s')
    parser.add_argument('--rounds', type=int, default=1, help='default: %(default)s')
    parser.add_argument(
        '--tokenizer', type=Path, help='folder of a BERT, for real tokens; default: one made from the names'
    )
    parser.add_argument('--device', default='cpu', help='default: %(default)s')
    parser.add_argument('--answer', nargs=2, metavar=('SIDE', 'FOLDER'), help=argparse.SUPPRESS)
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> None:
    args = parse_args(argv)
    unknown = [depth for depth in args.depths if depth not in DEPTHS]
    if unknown:
        raise ValueError(f'unknown depth {unknown[0]!r}, expected some of {", ".join(DEPTHS)}')
    if min([*args.size, args.pictures, args.names, args.rounds]) < 1:
        raise ValueError('--size, --pictures, --names and --rounds must be at least 1')
    if args.answer:
        print(json.dumps(answer(args.depths[0], args.answer[0], Path(args.answer[1]), args)))
        return
    versions = f'Python {platform.python_version()}, torch {torch.__version__}'
    print(f'{platform.machine()}, {os.cpu_count()} cores, {versions}')
    print(f'device {args.device}, {torch.get_num_threads()} threads, {args.rounds} rounds\n')
    figures: list[Figure] = []
    for depth in args.depths or DEPTHS:
        with tempfile.TemporaryDirectory() as folder:
            figures += compare(depth, Path(folder), args)
    print(table(figures))


def compare(depth: str, folder: Path, args: argparse.Namespace) -> list[Figure]:
    """Let all sides answer in turns."""
    write_bert(folder / 'bert', args.tokenizer, class_names(args.names))
    write_weights(folder, depth, (args.size[0], args.size[1]))
    runs: dict[str, list[Run]] = {side: [] for side in SIDES}
    for turn in range(args.rounds):
        for side in SIDES if turn % 2 == 0 else reversed(SIDES):
            runs[side].append(in_process_of_its_own(depth, side, folder, args))
    check_answers(folder)
    case = f'{depth}, {args.names:,} names, {args.pictures} pictures {args.size[0]} x {args.size[1]}'
    return figures_of(case, runs)


def figures_of(case: str, runs: dict[str, list[Run]]) -> list[Figure]:
    """The table of one case; ratios of times are the peer's over ours."""

    def timed(title: str, side: str, key: str, bar: float | None) -> Figure:
        ours, peer = ([run[key] for run in runs[name]] for name in (side, 'peer'))
        ratio = paired_ratio(peer, ours)
        return Figure(title, written(median(ours)), written(median(peer)), ratio, bar=bar, at_least=True)

    def sized(run: Run) -> str:
        return f'{run["peak"] / MIB:,.0f} MiB ({(run["peak"] - run["idle"]) / MIB:,.0f} above idle)'

    ours, peer = runs['ours'][0], runs['peer'][0]
    sentences = f'{ours["sentences"]} sentences against {peer["sentences"]}'
    return [
        timed(f'{case}, {sentences}', 'ours', 'seconds', 3.0),
        timed(f"{case}, the peer's sentences", 'ours40', 'seconds', None),
        timed(f'{case}, a further picture', 'ours', 'further', None),
        Figure(
            f'{case}, peak memory', sized(ours), sized(peer), ours['peak'] / peer['peak'], bar=1.0
        ),
    ]  # fmt: skip


def check_answers(folder: Path) -> None:
    """Refuse to compare models that do not give the same answer to the same sentences."""
    theirs, ours = (np.load(folder / f'{side}.npz') for side in ('peer', 'ours40'))
    equal = sum(
        bool(
            (
                (ours['labels'] == label)
                & (np.abs(ours['bboxes'] - box).max(axis=1, initial=0) < 0.05)
                & (np.abs(ours['scores'] - score) < 1e-4)
            ).any()
        )
        for box, label, score in zip(theirs['bboxes'], theirs['labels'], theirs['scores'])
    )
    counts = len(theirs['scores']), len(ours['scores'])
    if equal < _SHARE_OF_EQUAL_BOXES * max(counts):
        raise ValueError(f'the peer finds {counts[0]} boxes, we {counts[1]}, of which {equal} are equal')
    print(f'{equal} of {max(counts)} boxes are equal', file=sys.stderr)


def in_process_of_its_own(depth: str, side: str, folder: Path, args: argparse.Namespace) -> Run:
    """What ``answer`` measures, in a fresh interpreter."""
    print(f'{depth}, {side} ...', file=sys.stderr)
    options = ['--size', *map(str, args.size), '--pictures', str(args.pictures), '--names', str(args.names)]
    command = [sys.executable, str(Path(__file__).resolve()), depth, *options]
    command += ['--device', args.device, '--answer', side, str(folder)]
    run = subprocess.run(command, capture_output=True, text=True)
    if run.returncode:
        raise ValueError(f'{side}, {depth} failed: {run.stderr.strip()[-800:]}')
    measured: Run = json.loads(run.stdout.splitlines()[-1])
    print(measured, file=sys.stderr)
    return measured


def answer(depth: str, side: str, folder: Path, args: argparse.Namespace) -> Run:
    """Ask one side about all pictures; its detections go into a file.

    Returns:
        seconds of all pictures, and of one of those after the first; peak and idle memory in bytes; the
        number of sentences.
    """
    names = class_names(args.names)
    model: Any = load_peer(folder, depth) if side == 'peer' else load_ours(folder, depth, names, side)
    model = model.to(args.device)
    clock = time.process_time if args.device == 'cpu' else time.perf_counter
    ask(model, picture((64, 64), 99), names[:1] if side == 'peer' else ())  # what is made on first use
    generator = [picture(tuple(args.size), seed) for seed in range(args.pictures)]
    reset_peak(args.device)
    idle = peak_memory(args.device)
    stamps, found = [clock()], []
    for image in generator:
        found.append(ask(model, image, names if side == 'peer' else None))
        stamps.append(clock())
    np.savez(
        folder / f'{side}.npz', **{key: np.concatenate([part[key] for part in found]) for key in found[0]}
    )
    each = np.diff(stamps)
    sentences = -(-len(names) // NAMES_PER_PROMPT) if side == 'peer' else len(model._class_prompts)
    return {
        'seconds': stamps[-1] - stamps[0],
        'further': float(np.median(each[1:] if len(each) > 1 else each)),
        'idle': idle,
        'peak': peak_memory(args.device),
        'sentences': sentences,
        'boxes': len(found[0]['scores']),
    }


def ask(model: Any, image: torch.Tensor, names: Sequence[str] | None) -> dict[str, np.ndarray]:
    """Boxes, scores and labels of one picture; ``names`` are for the peer, () is a small question to us."""
    question: dict[str, Any] = {}
    if names is not None:
        question = {'text': tuple(names), 'custom_entities': True} if names else {'text': ['thing']}
    asked = sample(tuple(image.shape[1:]), **question)
    with torch.no_grad():
        (found,) = model.test_step({'inputs': [image], 'data_samples': [asked]})
    instances = found.pred_instances
    return {key: instances[key].cpu().numpy() for key in ('bboxes', 'scores', 'labels')}


def sample(size: tuple[int, ...], **question: Any) -> Any:
    from mmdet.structures import DetDataSample

    return DetDataSample(
        metainfo={'img_shape': size, 'ori_shape': size, 'scale_factor': (1.0, 1.0), **question}
    )


def picture(size: tuple[int, ...], seed: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    coarse = torch.rand(1, 3, 8, 12, generator=generator) * 255
    smooth = torch.nn.functional.interpolate(coarse, size=tuple(size), mode='bicubic').clamp(0, 255)
    return smooth[0].to(torch.uint8)


def class_names(count: int) -> list[str]:
    from ovd.text.vocabulary import Vocabulary

    return list(Vocabulary.parse('lvis').names[:count])


def write_weights(folder: Path, depth: str, size: tuple[int, int]) -> None:
    """Random weights of the peer and the same ones as ours; one score in fifty is above the threshold."""
    from mmdet.utils import register_all_modules
    from mmdet_glip import build_peer

    from ovd.checkpoints.writing import save_tensors
    from ovd.conversion.glip import convert_glip

    register_all_modules(init_default_scope=False)
    peer = build_peer(folder / 'bert', depth == 'deep', NAMES_PER_PROMPT, MAX_PER_PROMPT)
    head = peer.bbox_head.head
    with torch.no_grad():
        torch.nn.init.normal_(head.dot_product_projection_text.weight, std=0.125)
        save_tensors(folder / 'ours.safetensors', convert_glip(peer.state_dict()).tensors)
        logits = token_logits(load_ours(folder, depth, class_names(NAMES_PER_PROMPT), 'ours40'), size)
        threshold = peer.test_cfg.score_thr
        head.bias0 += math.log(threshold / (1 - threshold)) - logits.quantile(0.98)
    torch.save(peer.state_dict(), folder / 'peer.pth')
    converted = convert_glip(peer.state_dict())
    if converted.unmatched:
        raise ValueError(f'no counterpart of {converted.unmatched[:3]}')
    save_tensors(folder / 'ours.safetensors', converted.tensors)


def token_logits(model: Any, size: tuple[int, int]) -> torch.Tensor:
    """Logits of the first sentence on a picture, of all places and real tokens."""
    from ovd.encoders.tokens.prompt_features import PromptBatch

    batch = PromptBatch.of(model._prompts.encode(model._class_prompts[:1]))
    data = model.data_preprocessor({'inputs': [picture(size, 0)], 'data_samples': [sample(size)]}, False)
    outputs = model.bbox_head(model.extract_feat(data['inputs']), batch.features)
    logits: torch.Tensor = outputs.logits[..., batch.features.mask[0]]
    return logits.flatten()[:: max(1, logits.numel() // 1_000_000)]


def load_peer(folder: Path, depth: str) -> Any:
    from mmdet.utils import register_all_modules
    from mmdet_glip import build_peer

    register_all_modules(init_default_scope=False)
    peer = build_peer(folder / 'bert', depth == 'deep', NAMES_PER_PROMPT, MAX_PER_PROMPT)
    peer.load_state_dict(torch.load(folder / 'peer.pth', weights_only=True, mmap=True))
    return peer


def load_ours(folder: Path, depth: str, names: Sequence[str], side: str) -> Any:
    """Our model as its configuration builds it, with the port's upsampling, ranking and numbers of boxes."""
    from mmengine.registry import DefaultScope

    from ovd.checkpoints.loading import load_for_inference, load_tensors
    from ovd.config import load_config
    from ovd.registry import MODELS

    config = load_config(CONFIGS / DEPTHS[depth])
    config.merge_from_dict(
        {
            'model.bbox_head.dyhead.upsample': 'nearest',
            'model.test_cfg.ranking': 'probability',
            'model.test_cfg.max_per_prompt': MAX_PER_PROMPT,
            'model.test_cfg.max_per_img': None,
        }
    )
    config.model.backbone.init_cfg = None
    config.model.text.encoder = {'model': str(folder / 'bert')}
    config.model.text.vocabulary = list(names)
    if side == 'ours40':
        config.model.text.names_per_prompt = NAMES_PER_PROMPT
    with DefaultScope.overwrite_default_scope('mmdet'):
        model: Any = MODELS.build(config.model)
    load_for_inference(model, load_tensors(folder / 'ours.safetensors'))
    return model.eval()


def write_bert(folder: Path, tokenizer: Path | None, names: Sequence[str]) -> None:
    """Configuration of BERT-base and a tokenizer; without a real one, words of the names in pieces of six."""
    folder.mkdir()
    settings = {
        'model_type': 'bert',
        'vocab_size': 30522,
        'hidden_size': 768,
        'num_hidden_layers': 12,
        'num_attention_heads': 12,
        'intermediate_size': 3072,
        'max_position_embeddings': 512,
    }
    (folder / 'config.json').write_text(json.dumps(settings))
    (folder / 'tokenizer_config.json').write_text(
        json.dumps({'tokenizer_class': 'BertTokenizer', 'do_lower_case': True})
    )
    if tokenizer is not None:
        if not (tokenizer / 'vocab.txt').is_file():
            raise FileNotFoundError(f'the tokenizer folder {tokenizer} has no vocab.txt')
        (folder / 'vocab.txt').write_bytes((tokenizer / 'vocab.txt').read_bytes())
        return
    from ovd.text.phrases import clean_name

    pieces = dict.fromkeys(['[PAD]', '[UNK]', '[CLS]', '[SEP]', '[MASK]', *".,'-/&()"])
    for name in names:
        letters = unicodedata.normalize('NFD', clean_name(name).lower())
        plain = ''.join(letter for letter in letters if unicodedata.category(letter) != 'Mn')
        for word in re.findall(r'\w+|[^\w\s]', plain):
            parts = [word[start : start + 6] for start in range(0, len(word), 6)]
            pieces |= dict.fromkeys([parts[0], *('##' + part for part in parts[1:])])
    unused = (f'[unused{number}]' for number in range(30522 - len(pieces)))
    (folder / 'vocab.txt').write_text('\n'.join([*pieces, *unused]) + '\n', encoding='utf-8')


if __name__ == '__main__':
    sys.exit(run_tool(main))
