"""LSeg zero-shot on PASCAL-5i: ResNet-101, each image asked for one class against 'others'.

    python tools/train.py configs/lseg_r101_pascal5i.py
    python tools/test.py configs/lseg_r101_pascal5i.py work_dirs/lseg_r101_pascal5i/latest.pth

Li et al., ICLR 2022, Sec. 4.2: trained on the 15 classes outside the fold, tested on its five by name alone;
images squeezed to 480 x 480, queries and supports both trained on. Other folds: --cfg-options fold=1.
The authors swept the learning rate for each data set, unpublished, and stopped within four epochs
(isl-org/lang-seg, issues 34 and 36). 20 episodes of two images to a step, about 40 GB on one GPU
(estimate); SyncBN and a smaller train_dataloader.batch_size spread them over several. The ImageNet weights go
to data/weights, see data/README.md, section Weights; testing needs none.
Published mIoU of folds 0 to 3: 52.8, 53.8, 44.4, 38.5, mean 47.4; users who trained anew report 17.9 to 28 on
fold 0 (issues 19 and 32). Not yet trained by us.
"""

_base_ = [
    '../../_base_/models/lseg_few_shot.py',
    '../../_base_/datasets/few_shot.py',
    '../../_base_/schedules/lseg.py',
]

data = 'pascal5i'
vocabulary = 'fewshot_pascal'  # ovd/assets/vocabularies/fewshot_pascal.json
max_iters = 2280  # four epochs of fold 0: 11,394 episodes in batches of 20
val_interval = max_iters // 4
decay_iters = 60 * max_iters  # the published decay is spread over 240 epochs, of which four are run
lr = 0.005
images_per_step = 20
default_hooks = dict(checkpoint=dict(interval=val_interval, max_keep_ckpts=4))
needs = dict(always=_base_.model_needs)
model = dict(text=dict(vocabulary=vocabulary))
