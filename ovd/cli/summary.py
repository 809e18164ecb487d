"""What a command says of many answers: a table of names, counts and mean scores."""

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from typing import Any


class Summary:
    """Counts answers; the table has a row for each name that was asked for.

    Args:
        names: in the order of the table.
    """

    def __init__(self, names: Sequence[str]) -> None:
        self.names = list(names)
        self.count: dict[str, int] = defaultdict(int)
        self.images: dict[str, int] = defaultdict(int)
        self.scores: dict[str, float] = defaultdict(float)
        self.scored = False

    def add(self, objects: Iterable[Mapping[str, Any]]) -> None:
        """Count the objects of one picture: ``name`` and ``score``, which is None for words of a map."""
        seen = set()
        for found in objects:
            name = found['name']
            self.count[name] += 1
            seen.add(name)
            if found['score'] is not None:
                self.scored = True
                self.scores[name] += found['score']
        for name in seen:
            self.images[name] += 1

    def table(self) -> str:
        """Name, number of objects, number of pictures, mean score; the most frequent first."""
        names = dict.fromkeys([*self.names, *self.count])
        order = sorted(names, key=lambda name: -self.count[name])
        width = max([4, *(len(name) for name in order)])
        lines = [f'{"name":{width}}  {"count":>7}  {"pictures":>8}  {"mean score":>10}']
        for name in order:
            count = self.count[name]
            mean = f'{self.scores[name] / count:.2f}' if count and self.scored else '-'
            lines.append(f'{name:{width}}  {count:7d}  {self.images[name]:8d}  {mean:>10}')
        return '\n'.join(lines)
