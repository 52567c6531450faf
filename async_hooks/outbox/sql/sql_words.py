"""What a statement does to a database, as far as its text says."""

from __future__ import annotations

import re
from typing import Any

#: First words of a statement in plain SQL that changes nothing; WITH may introduce either.
_READS = {
    *("SELECT", "SHOW", "PRAGMA", "EXPLAIN", "DESCRIBE", "VALUES", "TABLE"),
    *("SET", "BEGIN", "SAVEPOINT", "RELEASE", "ROLLBACK"),
}
_FIRST_WORD = re.compile(r"(?:\s|\(|--[^\n]*|/\*.*?\*/)*+(\w+)", re.DOTALL)
_CHANGE = re.compile(r"\b(INSERT|UPDATE|DELETE|MERGE|REPLACE)\b", re.IGNORECASE)


def changes(statement: str, context: Any) -> bool:
    """Tell whether a statement, so executed, may have changed something."""
    if context is None:
        return False
    if context.compiled is not None and not context.is_text:
        return bool(context.isinsert or context.isupdate or context.isdelete or context.isddl)
    first = _FIRST_WORD.match(statement)
    word = first[1].upper() if first is not None else "SELECT"
    return word not in _READS and (word != "WITH" or _CHANGE.search(statement) is not None)
