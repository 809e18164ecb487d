"""Test sets side by side, each with its own words and its own score."""

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
    """Data sets that one run evaluates, each for itself: ``ovd.NamedPartsMetric`` scores them.

    Every sample has the name of its data set as metainfo ``part``. ``metainfo`` has ``parts`` (name ->
    metainfo of that data set) and ``missing_parts`` (name -> file that is not there).

    Args:
        parts: name -> config of a data set, without a pipeline.
        pipeline: of all parts.
        common: arguments of every part; a part's own go first.
        missing: 'refuse' parts whose annotation file does not exist, or 'drop' them, and name them in log and
            report.
    Raises:
        FileNotFoundError: annotation files do not exist, all of them are listed; with 'drop', none exists.
    """

    provides_class_names = True  # each part says what is asked for

    def __init__(
        self,
        parts: Mapping[str, Mapping[str, Any]],
        pipeline: Sequence[Any],
        common: Mapping[str, Any] | None = None,
        missing: str = 'refuse',
    ) -> None:
        check_option('missing', missing, ('refuse', 'drop'))
        if not parts:
            raise ValueError('NamedParts needs at least one part')
        given = {'test_mode': True, 'pipeline': pipeline, **(common or {})}
        configs = {name: {**given, **part} for name, part in parts.items()}
        if bare := [name for name, part in configs.items() if not part.get('ann_file')]:
            raise ValueError(f'part {bare[0]!r} has no ann_file')
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
        part, place = self._get_ori_dataset_idx(idx)
        data = self.datasets[part][place]
        data['data_samples'].set_metainfo({'part': self.names[part]})
        return data


_HINT = " (missing='drop' evaluates the others)"


def _listed(absent: Mapping[str, str], count: int) -> str:
    files = ', '.join(f'{name} ({file})' for name, file in absent.items())
    return f'{len(absent)} of {count} data sets are not on disk: {files}'
