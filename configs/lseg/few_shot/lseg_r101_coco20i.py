"""LSeg zero-shot on COCO-20i: ResNet-101, each image asked for one class against 'others'.

    python tools/train.py configs/lseg_r101_coco20i.py
    python tools/test.py configs/lseg_r101_coco20i.py work_dirs/lseg_r101_coco20i/latest.pth

Li et al., ICLR 2022, Sec. 4.2: trained on the 60 classes outside the fold, tested on its 20 by name alone,
1,000 episodes; recipe and folds as in lseg_r101_pascal5i.py. Training draws episodes without end;
16,000 steps are four epochs of 80,000 episodes (estimate). About 40 GB on one GPU (estimate).
Published mIoU of folds 0 to 3: 22.1, 25.1, 24.9, 21.5, mean 23.4; a user who trained anew is 10 points short
(isl-org/lang-seg, issue 40). Not yet trained by us.
"""

_base_ = [
    '../../_base_/models/lseg_few_shot.py',
    '../../_base_/datasets/few_shot.py',
    '../../_base_/schedules/lseg.py',
]

data = 'coco20i'
vocabulary = 'fewshot_coco'  # ovd/assets/vocabularies/fewshot_coco.json
max_iters = 16000
val_interval = max_iters // 4
decay_iters = 60 * max_iters  # the published decay is spread over 240 epochs, of which four are run
lr = 0.005
images_per_step = 20
default_hooks = dict(checkpoint=dict(interval=val_interval, max_keep_ckpts=4))
needs = dict(always=_base_.model_needs)
model = dict(text=dict(vocabulary=vocabulary))
