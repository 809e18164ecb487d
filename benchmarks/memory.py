"""Peak memory of an answer to many words against one to few, each in a process of its own.

    python benchmarks/memory.py                                  # LSeg and GroupViT, 10,000 words against 150
    python benchmarks/memory.py lseg --words 150 1203 10000 --size 1024
    python benchmarks/memory.py --device cuda

Weights and class vectors are random and the words are numbers: memory depends on neither. On a CPU the peak
is that of the resident memory while the model answers (Linux: VmHWM, set back before), the model and Python
included; on a GPU that of the allocated memory.
"""

import argparse
import json
import os
import platform
import re
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from timing import Figure, table, written

import ovd  # noqa: F401  (before any host is imported)
from ovd.cli.console import run_tool

BAR = 1.3
MIB = 1 << 20
MODELS: dict[str, dict[str, Any]] = {
    'lseg': {
        'type': 'ovd.LSeg',
        'backbone': {
            'type': 'ovd.DPTViT',
            'vit': {'type': 'ovd.TimmViT', 'model': 'vit_base_patch32_384'},
            'hooks': (2, 5, 8, 11),
            'channels': (96, 192, 384, 768),
        },
        'neck': {'type': 'ovd.DPTFusion', 'in_channels': (96, 192, 384, 768), 'out_channels': 256},
        'head': {'in_channels': 256, 'embed_dim': 512},
    },
    'groupvit': {
        'type': 'ovd.GroupViT',
        'image_encoder': {'type': 'ovd.GroupingTransformer'},
        'text_encoder': {},
        'readout': {'type': 'ovd.SoftReadout'},
    },
}


def parse_args(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument('models', nargs='*', metavar='MODEL', help=f'default: {" ".join(MODELS)}')
    parser.add_argument('--words', nargs='+', type=int, default=[150, 10000], help='default: %(default)s')
    parser.add_argument('--size', type=int, default=480, help='side of the image; default: %(default)s')
    parser.add_argument('--device', default='cpu', help='default: %(default)s')
    parser.add_argument('--answer', action='store_true', help=argparse.SUPPRESS)
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> None:
    args = parse_args(argv)
    unknown = [name for name in args.models if name not in MODELS]
    if unknown:
        raise ValueError(f'unknown model {unknown[0]!r}, expected some of {", ".join(MODELS)}')
    if min([*args.words, args.size]) < 1:
        raise ValueError('--words and --size must be at least 1')
    if args.answer:
        print(json.dumps(answer(args.models[0], args.words[0], args.size, args.device)))
        return
    versions = f'Python {platform.python_version()}, torch {torch.__version__}'
    print(f'{platform.machine()}, {os.cpu_count()} cores, {versions}, device {args.device}\n')
    figures = []
    for name in args.models or MODELS:
        runs = [in_process_of_its_own(name, count, args) for count in args.words]
        figures += [compare(name, args.size, runs[0], run) for run in runs[1:]]
    print(table(figures))


def in_process_of_its_own(name: str, words: int, args: argparse.Namespace) -> dict[str, float]:
    """What ``answer`` measures, in a fresh interpreter."""
    print(f'{name}, {words} words ...', file=sys.stderr)
    options = ['--words', str(words), '--size', str(args.size), '--device', args.device, '--answer']
    command = [sys.executable, str(Path(__file__).resolve()), name, *options]
    run = subprocess.run(command, capture_output=True, text=True)
    if run.returncode:
        raise ValueError(f'{name} with {words} words failed: {run.stderr.strip()[-500:]}')
    return {'words': words, **json.loads(run.stdout.splitlines()[-1])}


def answer(name: str, words: int, size: int, device: str) -> dict[str, float]:
    """Peak and idle memory in bytes, and the seconds, of one answer."""
    model = build(name, words).to(device).eval()
    image = torch.randint(0, 256, (3, size, size), dtype=torch.uint8)
    from mmseg.structures import SegDataSample

    sample = SegDataSample(metainfo={'ori_shape': (size, size)})
    reset_peak(device)
    idle = peak_memory(device)
    start = time.perf_counter()
    with torch.no_grad():
        (found,) = model.test_step({'inputs': [image], 'data_samples': [sample]})
    labels = found.pred_sem_seg.data.cpu()
    seconds = time.perf_counter() - start
    if labels.shape != (1, size, size) or labels.max() >= words:
        raise ValueError(f'{name} answered with labels {list(labels.shape)} up to {int(labels.max())}')
    return {'idle': idle, 'peak': peak_memory(device), 'seconds': seconds}


def build(name: str, words: int) -> Any:
    """The model with random weights and random vectors of its words."""
    from mmengine.registry import DefaultScope

    from ovd.encoders.text_embeddings import TextEmbeddings
    from ovd.registry import MODELS as REGISTRY
    from ovd.text.vocabulary import Vocabulary

    torch.manual_seed(0)
    preprocessor = {
        'type': 'SegDataPreProcessor',
        'mean': [127.5] * 3,
        'std': [127.5] * 3,
        'bgr_to_rgb': True,
    }
    with DefaultScope.overwrite_default_scope('mmseg'):
        model: Any = REGISTRY.build({**MODELS[name], 'data_preprocessor': preprocessor})
    width = getattr(model, 'head', model).embed_dim
    vectors = torch.nn.functional.normalize(torch.randn(words, width), dim=1)
    vocabulary = Vocabulary([f'thing {index}' for index in range(words)])
    model.set_vocabulary(TextEmbeddings(vectors, vocabulary, ('{}',), ''))
    return model


def reset_peak(device: str) -> None:
    """Let ``peak_memory`` speak of what comes from now on.

    Raises:
        NotImplementedError: on a CPU, if the system has no such peak or does not set it back.
    """
    if device.startswith('cuda'):
        torch.cuda.reset_peak_memory_stats()
        return
    switch = Path('/proc/self/clear_refs')
    if not switch.exists():
        raise NotImplementedError('peak memory on a CPU is read from /proc, which is not here')
    switch.write_text('5')
    if status('VmHWM') > status('VmRSS') + 16 * MIB:
        raise NotImplementedError('this system does not set the peak of resident memory (VmHWM) back')


def peak_memory(device: str) -> int:
    """Largest memory in use since ``reset_peak``, in bytes."""
    return torch.cuda.max_memory_allocated() if device.startswith('cuda') else status('VmHWM')


def status(field: str) -> int:
    """A size of ``/proc/self/status``, in bytes."""
    found = re.search(rf'{field}:\s+(\d+) kB', Path('/proc/self/status').read_text())
    if found is None:
        raise NotImplementedError(
            f'peak memory on a CPU is read from /proc/self/status, which has no {field}'
        )
    return int(found[1]) * 1024


def compare(name: str, size: int, few: dict[str, float], many: dict[str, float]) -> Figure:
    """Ratio of the peaks, with what each is made of."""

    def written_out(run: dict[str, float]) -> str:
        added = (run['peak'] - run['idle']) / MIB
        return f'{run["peak"] / MIB:,.0f} MiB ({added:,.0f} above idle), {written(run["seconds"])}'

    case = f'{name}, {size} x {size}, {many["words"]:,} words against {few["words"]:,}'
    return Figure(case, written_out(many), written_out(few), many['peak'] / few['peak'], bar=BAR)


if __name__ == '__main__':
    sys.exit(run_tool(main))
