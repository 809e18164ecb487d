"""Checks before a run: classes and metainfo of data and model, and the region store."""

from collections.abc import Iterator, Mapping
from itertools import zip_longest
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ..models.base import OpenVocabularyModel


def check_classes(model: 'OpenVocabularyModel', metainfo: Mapping[str, Any]) -> None:
    """Refuse data whose classes differ from the model's vocabulary, or are in another order.

    Labels are indices of the vocabulary: they would be trained, or evaluated, as other classes.

    Raises:
        ValueError: names the first class that differs.
    """
    classes = metainfo.get('classes')
    if classes is None:
        return
    try:
        vocabulary = model.vocabulary
    except ValueError:  # the model has no vocabulary, for example during CLIP training
        return
    if tuple(classes) in (vocabulary.names, vocabulary.labels):
        return
    pairs = list(zip_longest(vocabulary.labels, classes))
    first = next(index for index, (ours, theirs) in enumerate(pairs) if ours != theirs)
    ours, theirs = pairs[first]
    raise ValueError(
        f'class {first} is {theirs!r} in the data ({len(classes)} classes) and {ours!r} in the model '
        f'({len(vocabulary)}): data set and model must share one vocabulary'
    )


def check_packing(model: 'OpenVocabularyModel', dataset: Any) -> None:
    """Refuse a pipeline that drops metainfo which the model reads.

    Raises:
        ValueError: names the missing entry of ``meta_keys``.
    """
    from ..datasets.sample_traits import Packing, pipeline_steps, sample_keys

    offered = sample_keys(dataset)
    for step in pipeline_steps(dataset):
        for key in model.sample_keys if isinstance(step, Packing) else ():
            if key in offered and key not in step.meta_keys:
                raise ValueError(
                    f'{type(step).__name__} drops {key!r} of {type(dataset).__name__}, which '
                    f'{type(model).__name__} reads: add it to meta_keys'
                )


def datasets_using_model_vocabulary(dataset: Any) -> Iterator[Any]:
    """Inner data sets that rely on the model's vocabulary: their samples carry no class names."""
    from mmdet.datasets import BaseDetDataset

    from ..datasets.sample_traits import inner_datasets, provides_class_names

    for each in inner_datasets(dataset):
        is_named_by_host = isinstance(each, BaseDetDataset) and each.return_classes
        if not (is_named_by_host or provides_class_names(each)):
            yield each


def check_region_store(config: Mapping[str, Any]) -> None:
    """Check the region store of ``region_cache``, if the training data read it.

    Stores at other paths are not checked.

    Raises:
        FileNotFoundError, ValueError: the store is missing, unfinished or has other crops than the section.
    """
    from ..regions.crops import CropPolicy
    from ..regions.store import RegionStore

    section, loader = config.get('region_cache'), config.get('train_dataloader')
    if section is None or loader is None:
        return
    steps = [step for dataset in dataset_configs(loader['dataset']) for step in dataset.get('pipeline', ())]
    if any(step.get('store') == section['store'] for step in steps):
        crops = CropPolicy(**section.get('crops') or {})
        RegionStore(section['store']).check(crops=crops.to_dict())


def dataset_configs(dataset: Any) -> Iterator[Any]:
    """Configs of all data sets inside wrappers."""
    if isinstance(dataset, list | tuple):
        for part in dataset:
            yield from dataset_configs(part)
    elif 'dataset' in dataset or 'datasets' in dataset:
        yield from dataset_configs(dataset['dataset' if 'dataset' in dataset else 'datasets'])
    else:
        yield dataset
