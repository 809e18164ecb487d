"""``ovd doctor``: the installation in a text that can be pasted into a report, without paths of the user."""

import importlib.metadata
import os
import platform
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated

import typer

from ..console import say

app = typer.Typer(rich_markup_mode=None, add_completion=False)

PACKAGES = (
    'torch',
    'torchvision',
    'numpy',
    'opencv-python',
    'pillow',
    'onedl-mmengine',
    'onedl-mmcv',
    'onedl-mmdetection',
    'onedl-mmsegmentation',
    'open_clip_torch',
    'timm',
    'safetensors',
    'transformers',
    'supervision',
    'pandas',
    'pyarrow',
    'tensorboard',
)
OFFLINE = ('HF_HUB_OFFLINE', 'TRANSFORMERS_OFFLINE', 'HF_HUB_CACHE', 'HF_HOME')
# Folders that the configs read by default, from the folder in which the command is started.
DATA = {
    'OV-Shapes': 'data/shapes',
    'COCO': 'data/coco',
    'LVIS': 'data/lvis_v1',
    'ADE20K': 'data/ade/ADEChallengeData2016',
    'Pascal VOC': 'data/VOCdevkit',
    'Flickr30k': 'data/flickr30k',
    'Objects365': 'data/objects365v1',
    'weights': 'data/weights',
}


@app.command()
def doctor(
    quick: Annotated[bool, typer.Option('--quick', help='Import nothing: versions and disks only.')] = False,
) -> None:
    """Describe this installation: versions, operators, devices, data, models, disks."""
    for line in report(quick):
        say(line)


def report(quick: bool = False) -> Iterator[str]:
    """The lines of the description."""
    from ...version import __version__

    environment = 'virtual environment' if sys.prefix != sys.base_prefix else 'system Python'
    yield f'ovd {__version__}, Python {platform.python_version()} ({environment}), {platform.platform()}'
    yield ''
    yield 'packages'
    for name in PACKAGES:
        yield f'  {name:22}{installed(name)}'
    yield ''
    if not quick:
        yield from operators()
        yield from devices()
    yield from offline()
    yield from found_data()
    yield from found_models()
    yield from disks()


def installed(package: str) -> str:
    """The version of a distribution, or 'not installed'."""
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return 'not installed'


def operators() -> Iterator[str]:
    """Whose operators mmcv uses, and what that costs."""
    from ...hosts.import_hooks import uses_stand_in
    from ...hosts.ops import OPERATORS, REMEDY

    yield 'operators'
    if uses_stand_in():
        yield '  mmcv came without its compiled operators'
        yield f"  {len(OPERATORS)} of them are ovd's, on torch and torchvision"
        yield '  NMS and RoIAlign are as fast; deformable convolution and attention are slower'
        yield f'  to compile them: {REMEDY}'
    else:
        yield '  mmcv has its own compiled operators'
    yield ''


def devices() -> Iterator[str]:
    """Processors with their memory, and what can be trained with it."""
    import torch

    yield 'devices'
    cores = len(os.sched_getaffinity(0)) if hasattr(os, 'sched_getaffinity') else os.cpu_count()
    yield f'  CPU: {cores} cores, {torch.get_num_threads()} threads, {memory()}'
    count = torch.cuda.device_count()
    for index in range(count):
        properties = torch.cuda.get_device_properties(index)
        free, total = torch.cuda.mem_get_info(index)
        yield f'  cuda:{index}: {properties.name}, {free / 1e9:.0f} of {total / 1e9:.0f} GB free'
    yield f'  CUDA of torch: {torch.version.cuda or "none"}'
    if count:
        yield '  trains the full configs; the head of each config says how much memory it takes'
    else:
        yield '  no GPU: trains the *_shapes configs in minutes; the full configs need one'
    yield ''


def memory() -> str:
    """Main memory, where the system tells."""
    try:
        return f'{os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 1e9:.0f} GB of memory'
    except (AttributeError, ValueError, OSError):
        return 'memory unknown'


def offline() -> Iterator[str]:
    """What decides whether anything is downloaded; ovd itself opens a socket only when a verb asks for it."""
    given = [name for name in OFFLINE if os.environ.get(name)]
    yield 'network'
    yield '  only ovd fetch and the names of remote weights download anything'
    yield f'  variables that are set: {", ".join(given) or "none"} (of {", ".join(OFFLINE)})'
    yield ''


def found_data() -> Iterator[str]:
    """Which of the usual data folders are here."""
    yield 'data in the current folder'
    here = [f'  {name}: {folder}' for name, folder in DATA.items() if Path(folder).is_dir()]
    yield from here or ['  none of the usual folders']
    yield ''


def found_models() -> Iterator[str]:
    """Models that were fetched, and trainings in the current folder."""
    from ...inference.model_folders.fetching import list_models

    yield f'models in {name_of_home()}'
    yield from [f'  {row.name} ({row.kind})' for row in list_models() if row.on_disk] or ['  none']
    trained = sorted(Path('work_dirs').glob('*/latest.pth'))
    if trained:
        yield 'trained in work_dirs'
        yield from [f'  {path}' for path in trained]
    yield ''


def disks() -> Iterator[str]:
    """Free space where results and models go."""
    yield 'disks'
    from ...files import model_home

    for name, path in {'current folder': Path.cwd(), name_of_home(): model_home()}.items():
        existing = next(folder for folder in (path, *path.parents) if folder.exists())
        usage = shutil.disk_usage(existing)
        yield f'  {name}: {usage.free / 1e9:.0f} of {usage.total / 1e9:.0f} GB free'


def name_of_home() -> str:
    """The model folder without the name of the user in it."""
    return '$OVD_HOME' if os.environ.get('OVD_HOME') else '~/.cache/ovd/models'
