"""What was decided, delivered, ruled and seen: append-only rows under a keyed chain. The only code with SQLAlchemy.

The ledger says *why*; the spool's folders say *where*. It stores no patient name, and nothing here moves a file.
"""

from dicomguard.ledger.draws import Draw, DrawGroup, Tally
from dicomguard.ledger.kinds import EventKind
from dicomguard.ledger.ledger import Ledger
from dicomguard.ledger.records import (
    Delivery,
    DeliveryState,
    Event,
    Problem,
    Review,
    RuledAction,
)

__all__ = [
    "Delivery",
    "DeliveryState",
    "Draw",
    "DrawGroup",
    "Event",
    "EventKind",
    "Ledger",
    "Problem",
    "Review",
    "RuledAction",
    "Tally",
]
