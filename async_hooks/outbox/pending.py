"""What one session of an app's holds back until it commits."""

from __future__ import annotations

from sqlalchemy.orm import Session, SessionTransaction

from ..envelope import Envelope

#: Whose something is: a savepoint's, or, None, the root transaction's, this one's or the next's.
Owner = SessionTransaction | None


class Pending:
    """What one session holds back: each envelope with its owner."""

    def __init__(self) -> None:
        self.launches: list[tuple[Envelope, Owner]] = []
        #: The ids of those that the coming commit takes along.
        self.inserted: set[str] = set()
        #: Owners of what would be lost without a commit.
        self.written: set[Owner] = set()
        #: Whether the root transaction may hold locks.
        self.locks = False
        self.committed: SessionTransaction | None = None
        self.rolled_back: SessionTransaction | None = None

    def all(self) -> list[Envelope]:
        return [envelope for envelope, _ in self.launches]

    def take(self) -> list[Envelope]:
        """Let go of all."""
        taken = self.all()
        self.launches = []
        return taken

    def move(self, old: SessionTransaction, new: Owner) -> None:
        """Let what was of a savepoint be of the transaction around it."""
        self.launches = [
            (envelope, new if owner is old else owner) for envelope, owner in self.launches
        ]
        if old in self.written:
            self.written.remove(old)
            self.written.add(new)

    def drop(self, owner: Owner) -> None:
        """Let what is of ``owner`` be undone."""
        self.launches = [pair for pair in self.launches if pair[1] is not owner]
        self.written.discard(owner)


def innermost(session: Session) -> SessionTransaction | None:
    return session.get_nested_transaction() or session.get_transaction()


def outer(savepoint: SessionTransaction) -> Owner:
    """Return the savepoint that ``savepoint`` lies in, None for the root."""
    outer = savepoint.parent
    while outer is not None and not outer.nested:
        outer = outer.parent
    return outer
