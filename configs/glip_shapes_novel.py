"""As glip_shapes.py, but phrases of the 8 novel nouns have no boxes in training; their words do not count.

    python tools/train.py configs/glip_shapes_novel.py
    python tools/test.py configs/glip_shapes_novel.py work_dirs/glip_shapes_novel/latest.pth

Li et al., CVPR 2022, in small: does a phrase find a shape whose word never had a box? The recall of base and
novel phrases is reported beside that of naming any object of the caption. Not yet trained by us.
"""

_base_ = './glip_shapes.py'

train_dataloader = dict(dataset=dict(vocabulary='shapes', novel_boxes='drop'))
val_evaluator = dict(vocabulary='shapes')
test_evaluator = dict(vocabulary='shapes')
