"""Detection data sets whose categories are the queried classes, such as the 13 or 35 of ODinW."""

from collections.abc import Mapping
from typing import Any

from ...registry import DATASETS
from ...text.phrases import check_wordings, word_name
from ..annotations import Annotations, shorten
from ..sample_traits import SampleTraits
from .base_novel import OpenVocabularyDataset


@DATASETS.register_module()
class OwnClassesDataset(SampleTraits, OpenVocabularyDataset):
    """A COCO-style file; every image is queried with all categories of the file.

    Samples have the metainfo ``text``, the class names, and, if there are prompts, ``wordings``: class name
    -> ``prefix``, ``name`` and ``suffix`` in the prompt.

    Args:
        prompts: category name or id -> wording, such as dict(suffix=' of a person') or
            dict(name='flat mushroom'), see ``word_name``; None skips the category, as is needed for a
            "background" or parent class of the file.
        kwargs: see ``OpenVocabularyDataset``.
    Raises:
        ValueError: a prompt of an unknown category, or one that is not a wording; a category without a name.

    Source of the wordings: Li et al., CVPR 2022, Appendix E.
    """

    provides_class_names = True

    def __init__(
        self, *args: Any, prompts: Mapping[str | int, Mapping[str, str] | None] | None = None, **kwargs: Any
    ) -> None:
        self.prompts = dict(prompts or {})
        super().__init__(*args, **kwargs)

    def _resolve_classes(self, content: Annotations) -> None:
        by_key = {key: item['id'] for item in content['categories'] for key in (item['id'], item['name'])}
        unknown = [key for key in self.prompts if key not in by_key]
        if unknown:
            names = [f'{item["id"]}: {item["name"]}' for item in content['categories']]
            raise ValueError(
                f'{self.ann_file} has no category for the prompt of {unknown[0]!r}; it has {shorten(names)}'
            )
        prompts = {by_key[key]: prompt for key, prompt in self.prompts.items()}
        left_out = {category for category, prompt in prompts.items() if prompt is None}
        content['categories'] = [item for item in content['categories'] if item['id'] not in left_out]
        content['annotations'] = [
            item for item in content['annotations'] if item['category_id'] not in left_out
        ]
        for item in content['categories']:
            if not item['name'].strip():
                raise ValueError(
                    f'{self.ann_file}: category {item["id"]} has a blank name; '
                    f'skip it with prompts={{{item["id"]}: None}}'
                )
        super()._resolve_classes(content)
        self.wordings = {
            self._metainfo['classes'][self.cat2label[category]]: dict(prompt)
            for category, prompt in prompts.items()
            if prompt and category in self.cat2label
        }
        check_wordings(self.wordings, self._metainfo['classes'])
        for name in self._metainfo['classes']:
            word_name(name, self.wordings.get(name))  # raises if nothing is left of a name

    def prepare_data(self, idx: int) -> Any:
        """Run the pipeline; add the class names to the sample."""
        data = super().prepare_data(idx)
        question: dict[str, Any] = {'text': list(self._metainfo['classes'])}
        if self.wordings:
            question['wordings'] = self.wordings
        data['data_samples'].set_metainfo(question)
        return data
