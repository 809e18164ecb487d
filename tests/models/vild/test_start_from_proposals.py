"""A detector starts from the weights of a stand-alone proposal network."""

from pathlib import Path

import pytest
import torch

from ovd.config import load_config
from ovd.training.runner import build_runner
from tests.helpers import ROOT


def test_the_proposal_head_is_loaded_under_its_new_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(ROOT)
    # Without data: the loops build their loaders only when they run.
    single = load_config('configs/rpn_shapes.py', {'work_dir': str(tmp_path / 'rpn')})
    rpn = build_runner(single).model
    torch.save({'state_dict': rpn.state_dict()}, tmp_path / 'rpn.pth')
    double = load_config('configs/vild_text_shapes.py', {'work_dir': str(tmp_path / 'vild')})
    runner = build_runner(double)
    runner.load_checkpoint(str(tmp_path / 'rpn.pth'))
    loaded = runner.model.rpn_head.rpn_conv.weight
    assert torch.equal(loaded, rpn.state_dict()['bbox_head.rpn_conv.weight'])
    log = next((tmp_path / 'vild').rglob('*.log')).read_text()
    assert 'unexpected' not in log.split('rpn.pth in part:')[1].splitlines()[0]
