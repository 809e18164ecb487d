"""What data sets and transforms declare of their samples, so that a model can be checked against them.

Reading order: SampleTraits, then the walk through wrappers (``inner_datasets``).
"""

from collections.abc import Iterator
from typing import Any, Protocol, runtime_checkable


class SampleTraits:
    """Mix-in of data sets and transforms whose samples bring words of their own.

    Attributes:
        provides_class_names: samples say themselves which classes or phrases to look for, so the vocabulary
            of the model is not used.
        sample_keys: entries of the metainfo that samples have for models, see
            ``OpenVocabularyModel.sample_keys``.
    """

    provides_class_names: bool = False
    sample_keys: tuple[str, ...] = ()


@runtime_checkable
class Wrapper(Protocol):
    """A host's data set around another one."""

    dataset: Any


@runtime_checkable
class Joined(Protocol):
    """A host's data set of several others."""

    datasets: Any


@runtime_checkable
class HasPipeline(Protocol):
    """A data set with a pipeline of transforms."""

    pipeline: Any


@runtime_checkable
class HasMetainfo(Protocol):
    """A data set that describes its classes."""

    metainfo: Any


@runtime_checkable
class Packing(Protocol):
    """A transform that makes data samples and keeps only some metainfo."""

    meta_keys: Any


def inner_datasets(dataset: Any) -> Iterator[Any]:
    """Yield the data sets inside wrappers."""
    if isinstance(dataset, Wrapper):
        yield from inner_datasets(dataset.dataset)
    elif isinstance(dataset, Joined):
        for part in dataset.datasets:
            yield from inner_datasets(part)
    else:
        yield dataset


def pipeline_steps(dataset: Any) -> list[Any]:
    """The transforms of a data set's pipeline."""
    return list(dataset.pipeline.transforms) if isinstance(dataset, HasPipeline) else []


def metainfo_of(dataset: Any) -> dict[str, Any]:
    """The metainfo of a data set; empty where it has none."""
    return dataset.metainfo if isinstance(dataset, HasMetainfo) else {}


def provides_class_names(dataset: Any) -> bool:
    """Whether the samples of a data set bring their class names or sentences, from its files or pipeline."""
    parts = (dataset, *pipeline_steps(dataset))
    return any(isinstance(part, SampleTraits) and part.provides_class_names for part in parts)


def sample_keys(dataset: Any) -> set[str]:
    """Metainfo that the samples of a data set have for models."""
    parts = (dataset, *pipeline_steps(dataset))
    return {key for part in parts if isinstance(part, SampleTraits) for key in part.sample_keys}
