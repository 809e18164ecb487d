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
label_by = 'category'
max_iters = 900
