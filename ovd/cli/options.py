"""Options that several verbs of the command share."""

from typing import Annotated

import typer

Model = Annotated[
    str | None, typer.Option('--model', '-m', help='Name of a model (see ovd models), or its folder.')
]
Config = Annotated[str | None, typer.Option(help='Config by name or path, with --checkpoint.')]
Checkpoint = Annotated[str | None, typer.Option(help='Weights of that config, unless it needs none.')]
ConfigOption = Annotated[
    list[str] | None,
    typer.Option('--option', '-o', metavar='KEY=VALUE', help='Change the config; repeatable.'),
]
Device = Annotated[str | None, typer.Option(help='cpu, cuda, cuda:1; default: the GPU if there is one.')]
Threshold = Annotated[
    list[str] | None,
    typer.Option(
        '--threshold',
        '-t',
        metavar='NUMBER',
        help="Lowest score: 0.4, or of one word: dog=0.4; default: the model's own, or 0.3.",
    ),
]
TopK = Annotated[int | None, typer.Option(min=1, help='At most so many objects per picture, the best.')]
Background = Annotated[
    bool | None,
    typer.Option(help='Models that map pixels: use their own background, or give every pixel a word.'),
]
Tile = Annotated[int | None, typer.Option(min=16, help='Cut large pictures into squares of so many pixels.')]
Overlap = Annotated[float, typer.Option(min=0.0, max=0.9, help='Share that neighbouring squares overlap.')]
Batch = Annotated[int, typer.Option(min=1, help='Pictures per forward; only equal input sizes share one.')]
Half = Annotated[
    bool, typer.Option('--half', help='16-bit arithmetic: faster on a GPU, scores differ a little.')
]
Workers = Annotated[int | None, typer.Option(min=0, help='Threads that read, and that draw and write.')]
Quiet = Annotated[bool, typer.Option('--quiet', '-q', help='No bar and no table.')]
