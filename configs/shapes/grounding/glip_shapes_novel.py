"""As glip_shapes.py, but the 8 novel nouns never have a box: neither in class lists nor as phrases.

    python tools/train.py configs/glip_shapes_novel.py
    python tools/test.py configs/glip_shapes_novel.py work_dirs/glip_shapes_novel/latest.pth

Li et al., CVPR 2022, in small: does a phrase find a shape whose word never had a box? The tiny CLIP has seen
the words in captions; in the losses they do not count. The recall of base and novel phrases is reported
beside that of naming any object of the picture. docs/glip_shapes.md compares this with
glip_shapes_novel_scratch.py and glip_shapes_student.py.
"""

_base_ = '../../_base_/models/glip_shapes.py'

class_list_file = 'annotations/instances_train.json'  # base classes only
class_list_words = 'shapes'  # novel names are never drawn
phrases_train = dict(vocabulary='shapes', novel_boxes='drop')
model = dict(text=dict(vocabulary='shapes'))  # 24 nouns, 8 of them novel: ovd/assets/vocabularies/shapes.json
val_evaluator = dict(vocabulary='shapes')
test_evaluator = dict(vocabulary='shapes')
