"""As glip_shapes_novel.py, and phrases of the 8 novel nouns have the boxes that its trained model finds.

    python tools/train.py configs/glip_shapes_novel.py
    python tools/pseudo_label.py configs/glip_shapes_student.py
    python tools/train.py configs/glip_shapes_student.py
    python tools/test.py configs/glip_shapes_student.py work_dirs/glip_shapes_student/latest.pth

Self-training of Li et al., CVPR 2022, in small: the teacher reads the whole caption ("a striped red heart
above a ring"), and its other words show it where the unknown one may be. No true box of a novel noun is read:
the data set keeps a novel phrase's boxes only where they have a teacher's score.
"""

_base_ = './glip_shapes_novel.py'

data_root = _base_.data_root
pseudo_labels = dict(
    out=data_root + 'annotations/pseudo_train.jsonl',
    teacher=dict(config='configs/glip_shapes_novel.py', checkpoint='work_dirs/glip_shapes_novel/latest.pth'),
    captions=dict(
        type='ovd.GroundingDataset',
        data_root=data_root,
        ann_file='annotations/phrases_train.jsonl',
        data_prefix=dict(img='train'),
        vocabulary='shapes',
        novel_boxes='drop',
    ),
    score_thr=0.2,
    max_boxes=1,
    phrase_nms=0.5,
)
needs = [
    *_base_.needs,
    dict(
        path=pseudo_labels['out'],
        what="the teacher's boxes",
        how='python tools/pseudo_label.py configs/glip_shapes_student.py',
    ),
]
phrases_train = dict(ann_file='annotations/pseudo_train.jsonl', novel_boxes='pseudo', min_score=0.2)
