"""LSeg on OV-Shapes, noun split: 16 nouns with masks, 8 known by their words alone.

    python tools/train.py configs/lseg_shapes_nouns.py
    python tools/test.py configs/lseg_shapes_nouns.py work_dirs/lseg_shapes_nouns/latest.pth
    python tools/test.py configs/lseg_shapes_nouns.py work_dirs/lseg_shapes_nouns/latest.pth --shuffle-text \\
        --out work_dirs/lseg_shapes_nouns/shuffled.json

Mirrors the zero-shot splits of the literature and is much harder than lseg_shapes.py: nothing in training
rewards pixels for looking like an unseen noun. The last command gives the unseen nouns each other's vectors:
what is left of their IoU is not owed to the words. Scores are in docs/results.md.
"""

_base_ = './lseg_shapes.py'

vocabulary = 'shapes'  # 24 nouns, 8 of them novel: ovd/assets/vocabularies/shapes.json
nouns = dict(vocabulary=vocabulary, label_by='category')
model = dict(text=dict(vocabulary=vocabulary))
train_dataloader = dict(dataset=nouns)
val_dataloader = dict(dataset=nouns)
test_dataloader = dict(dataset=nouns)

max_iters = 900
train_cfg = dict(max_iters=max_iters, val_interval=max_iters)
param_scheduler = [
    dict(type='LinearLR', start_factor=0.02, by_epoch=False, begin=0, end=50),
    dict(type='CosineAnnealingLR', eta_min=0.0, by_epoch=False, begin=50, end=max_iters),
]
default_hooks = dict(checkpoint=dict(interval=max_iters))
