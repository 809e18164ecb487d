"""Several test sets in one run, each with its own classes and scores."""

import os
from collections.abc import Mapping, Sequence
from typing import Any

from mmengine.dataset import ConcatDataset
from mmengine.logging import MMLogger

from ..options import check_option
from ..registry import DATASETS
from .sample_traits import SampleTraits


@DATASETS.register_module()
class NamedParts(SampleTraits, ConcatDataset):
    """Concatenate named test sets; ``ovd.NamedPartsMetric`` evaluates each of them separately.

    Every sample has the name of its data set as metainfo ``part``. ``metainfo`` has ``parts`` (name ->
    metainfo of that data set) and ``missing_parts`` (name -> missing file).

    Args:
        parts: name -> config of a data set with ``ann_file``, without a pipeline; at least one.
        pipeline: of all parts.
        common: default arguments of all parts.
        missing: 'refuse' parts whose annotation file does not exist, or 'drop' them, and name them in log and
            report.
    Raises:
        FileNotFoundError: lists the annotation files that do not exist; with 'drop', only if none exists.
    """

    provides_class_names = True

    def __init__(
        self,
        parts: Mapping[str, Mapping[str, Any]],
        pipeline: Sequence[Any],
        common: Mapping[str, Any] | None = None,
        missing: str = 'refuse',
    ) -> None:
        check_option('missing', missing, ('refuse', 'drop'))
        given = {'test_mode': True, 'pipeline': pipeline, **(common or {})}
        configs = {name: {**given, **part} for name, part in parts.items()}
        files = {
            name: os.path.join(part.get('data_root') or '', part['ann_file'])
            for name, part in configs.items()
        }
        absent = {name: file for name, file in files.items() if not os.path.isfile(file)}
        if absent and (missing == 'refuse' or len(absent) == len(files)):
            raise FileNotFoundError(f'{_listed(absent, len(files))}{_HINT if missing == "refuse" else ""}')
        if absent:
            MMLogger.get_current_instance().warning(_listed(absent, len(files)))
        self.names = [name for name in configs if name not in absent]
        datasets = [DATASETS.build(configs[name]) for name in self.names]
        super().__init__(datasets, ignore_keys=sorted({key for each in datasets for key in each.metainfo}))
        self._metainfo = {
            'parts': {name: dataset.metainfo for name, dataset in zip(self.names, datasets)},
            'missing_parts': absent,
        }

    def __getitem__(self, idx: int) -> Any:
        part, index = self._get_ori_dataset_idx(idx)
        data = self.datasets[part][index]
        data['data_samples'].set_metainfo({'part': self.names[part]})
        return data


_HINT = " (missing='drop' evaluates the others only)"


def _listed(absent: Mapping[str, str], count: int) -> str:
    files = ', '.join(f'{name} ({file})' for name, file in absent.items())
    return f'{len(absent)} of {count} data sets are missing: {files}'
