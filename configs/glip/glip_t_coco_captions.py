"""GLIP-T (C) fine-tuned on COCO's boxes under the words of COCO's captions; tested by the 80 names.

    python tools/train.py configs/glip_t_coco_captions.py
    python tools/test.py configs/glip_t_coco_captions.py work_dirs/glip_t_coco_captions/latest.pth

Captions and detection together, as by Li et al., CVPR 2022, on one data set: what a caption names gets its
boxes, the other classes of the image follow as names ("A man rides. horse. car"), so no box is lost. The
learning rate is that of the authors' fine-tuning; no flips, since captions say left and right. Only run for a
few steps on photographs by us, so without a published or measured result.
"""

_base_ = './glip_t_c_o365_goldg.py'

load_from = 'work_dirs/glip_t_c.safetensors'  # tools/convert_checkpoint.py --from glip makes it
caption_words = dict(
    person=(
        'man woman boy girl child kid lady guy baby toddler player skier snowboarder surfer '
        'skateboarder rider pedestrian crowd batter pitcher chef'
    ).split(),
    motorcycle=['motorbike', 'moped', 'scooter'],
    bicycle=['bike'],
    airplane=['plane', 'jet', 'aeroplane', 'airliner'],
    train=['locomotive'],
    boat=['ship', 'canoe', 'kayak', 'sailboat'],
    bear=['polar bear', 'brown bear', 'grizzly'],
    cat=['kitten', 'kitty'],
    dog=['puppy'],
    cow=['bull', 'calf', 'cattle'],
    sheep=['lamb'],
    horse=['pony'],
    couch=['sofa'],
    tv=['television', 'monitor', 'tv screen'],
    laptop=['laptop computer'],
    mouse=['computer mouse'],
    donut=['doughnut'],
    refrigerator=['fridge'],
    handbag=['purse'],
    suitcase=['luggage'],
    backpack=['knapsack'],
    book=['novel'],
    cup=['mug'],
    remote=['remote control', 'controller'],
)
train_dataloader = dict(
    dataset=dict(
        _delete_=True,
        type='ovd.CocoGroundingDataset',
        data_root='data/coco/',
        ann_file='annotations/instances_train2017.json',
        captions='annotations/captions_train2017.json',
        data_prefix=dict(img='train2017'),
        vocabulary='coco',
        words=caption_words,
        unnamed='append',
        bad_regions='drop',
        pipeline=[step for step in _base_.grounding_steps if step['type'] != 'RandomFlip'],
    )
)
max_iters = 45_000  # of 32 images
train_cfg = dict(type='IterBasedTrainLoop', max_iters=max_iters, val_interval=max_iters)
optim_wrapper = dict(
    optimizer=dict(lr=1e-5), paramwise_cfg=dict(custom_keys={'text.model.': dict(lr_mult=1.0)})
)
param_scheduler = [
    dict(type='LinearLR', start_factor=1e-3, by_epoch=False, begin=0, end=2000),
    dict(type='MultiStepLR', by_epoch=False, milestones=[30_000, 40_000], gamma=0.1),
]
auto_scale_lr = dict(enable=True, base_batch_size=32)
needs = dict(train=_base_.needs.test)
