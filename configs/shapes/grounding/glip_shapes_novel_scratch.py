"""As glip_shapes_novel.py, with a BERT of two layers from random weights in place of the tiny CLIP's text.

    python tools/train.py configs/glip_shapes_novel_scratch.py
    python tools/test.py configs/glip_shapes_novel_scratch.py work_dirs/glip_shapes_novel_scratch/latest.pth

A control for Li et al., CVPR 2022, in small: a word that never had a box means nothing here, and only
the other words of its phrase and caption can help.
"""

_base_ = './glip_shapes_novel.py'

model = dict(text=dict(encoder=dict(_delete_=True, model='bert_tiny_shapes')))
