"""Classes that a user names in an option."""

from __future__ import annotations

from collections.abc import Sequence

from dimec.core.errors import OptionError, shown
from dimec.data.dataset import MAX_LISTED
from dimec.data.folding import folded, spelled_out


def find_class(name: str, label_names: Sequence[str], *, option: str) -> int:
    """Return the code of the class of that name, or of the only one that looks like it.

    Raises:
        OptionError: If there is none, or several look like it; names the ``option``.
    """
    if name in label_names:
        return list(label_names).index(name)
    alike = [code for code, each in enumerate(label_names) if folded(each) == folded(name)]
    if len(alike) == 1:
        return alike[0]
    listed = ", ".join(map(spelled_out, label_names[:MAX_LISTED]))
    more = len(label_names) - MAX_LISTED
    raise OptionError(
        f"{option} {shown(name)} is {'more than one' if alike else 'no'} class: give one of {listed}"
        f"{f' and {more:,} more' if more > 0 else ''}"
    )
