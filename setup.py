"""What pyproject.toml cannot say: the wheel contains the folder ``configs`` as ``ovd/configs``."""

import shutil
from pathlib import Path

from setuptools import setup
from setuptools.command.build_py import build_py


class BuildWithConfigs(build_py):
    def run(self) -> None:
        super().run()
        if not self.editable_mode:
            target = Path(self.build_lib) / 'ovd' / 'configs'
            ignored = shutil.ignore_patterns('__pycache__', '.*')
            shutil.copytree('configs', target, ignore=ignored, dirs_exist_ok=True)


setup(cmdclass={'build_py': BuildWithConfigs})
