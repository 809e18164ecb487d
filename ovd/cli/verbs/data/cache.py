"""``ovd cache``: region stores are made, verified, described and imported."""

from collections.abc import Sequence

from . import cache_make, stores


def main(argv: Sequence[str] | None = None, program: str | None = None) -> None:
    """Hand ``make`` to the tool that fills a store, everything else to the tool that reads stores.

    ``import detpro ...`` and ``import oadp ...`` are ``import-detpro ...`` and ``import-oadp ...``.
    """
    words = list(argv or ())
    if words[:1] == ['make']:
        cache_make.main(words[1:], f'{program} make')
        return
    if words[:1] == ['import'] and len(words) > 1 and not words[1].startswith('-'):
        words[:2] = [f'import-{words[1]}']
    stores.main(words, program)
