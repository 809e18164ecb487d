"""``python -m ovd`` is the command ``ovd``."""

from .cli.main import main

main()
