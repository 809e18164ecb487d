"""What a run shows on the console: progress, results and warnings, one short line each."""

import logging
import re
from pathlib import Path

CONSOLE_NOISE = (
    'Loads checkpoint by',
    'Exp name:',
    'Checkpoints will be saved to',
    'Distributed training is not used',
    'Hooks will be executed',
    'FileClient',
    '"FileClient"',
    '"HardDiskBackend"',
    'paramwise_options',
    'Dataset list has no metainfo',
    'Auto resumed',
    'Advance dataloader',
    'Saving checkpoint',
)

_CONSOLE_DETAILS = re.compile(r'(?:base_lr|data_time|memory): \S+ *')


def is_for_console(record: logging.LogRecord) -> bool:
    """Whether a message is shown; mmengine's other messages go to the log file only."""
    message = record.getMessage()
    if message.startswith(CONSOLE_NOISE) or message.endswith('is skipped since its requires_grad=False'):
        return False
    if record.levelno > logging.INFO:
        return True
    in_setup = '\n' in message and Path(record.pathname).name in ('runner.py', 'base_module.py')
    return not in_setup


class ConsoleFormatter(logging.Formatter):
    """Time and message; also the level of warnings and errors."""

    def __init__(self) -> None:
        super().__init__('%(asctime)s', datefmt='%H:%M:%S')

    def formatMessage(self, record: logging.LogRecord) -> str:
        level = f'{record.levelname.lower()}: ' if record.levelno > logging.INFO else ''
        message = record.message
        if message.startswith(('Iter(', 'Epoch(')):
            message = _CONSOLE_DETAILS.sub('', message)
        return f'{record.asctime}  {level}{message}'
