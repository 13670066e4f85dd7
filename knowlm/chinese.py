"""Chinese script: traditional characters as simplified ones."""

from functools import cache


def simplified(text: str) -> str:
    """Give it a single character where offsets must hold: of words OpenCC may choose by their context.

    >>> simplified("臺灣")
    '台湾'
    """
    return _converter().convert(text)


@cache
def _converter():
    from opencc import OpenCC  # loads its tables, 0.1 s

    return OpenCC("t2s")
