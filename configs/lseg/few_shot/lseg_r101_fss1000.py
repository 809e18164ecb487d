"""LSeg zero-shot on FSS-1000: ResNet-101, each image asked for one class against 'others'.

    python tools/train.py configs/lseg_r101_fss1000.py
    python tools/test.py configs/lseg_r101_fss1000.py work_dirs/lseg_r101_fss1000/latest.pth

Li et al., ICLR 2022, Sec. 4.2: trained on 520 classes, tested on 240 others by name alone, all 2,400
pictures; recipe as in lseg_r101_pascal5i.py, without folds. The words are the names of the folders, in the
order of the data set: data/README.md, section FSS-1000, makes data/fss1000_splits/classes.txt. About 40 GB on
one GPU (estimate).
Published mIoU: 84.7 (isl-org/lang-seg, README). Not yet trained by us.
"""

_base_ = [
    '../../_base_/models/lseg_few_shot.py',
    '../../_base_/datasets/few_shot.py',
    '../../_base_/schedules/lseg.py',
]

data = 'fss1000'
vocabulary = 'data/fss1000_splits/classes.txt'  # 1,000 names: training, validation, test, each sorted
max_iters = 5200  # 20 epochs of 5,200 episodes in batches of 20
val_interval = max_iters // 4
decay_iters = max_iters
lr = 0.005
images_per_step = 20
default_hooks = dict(checkpoint=dict(interval=val_interval, max_keep_ckpts=4))
needs = dict(always=_base_.model_needs)
model = dict(text=dict(vocabulary=vocabulary))
