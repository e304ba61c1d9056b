"""What is accepted on an association, and the answer to what a peer proposes (PS3.8 section 9.3.3.2). Pure."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from dicomguard.receive.pdu import (
    ACCEPTANCE,
    NO_SUCH_ABSTRACT_SYNTAX,
    NO_SUCH_TRANSFER_SYNTAX,
    ContextResult,
    ProposedContext,
)

VERIFICATION = "1.2.840.10008.1.1"
# A verification has no data set: what every peer can encode is enough.
_NATIVE_SYNTAXES = frozenset({"1.2.840.10008.1.2", "1.2.840.10008.1.2.1", "1.2.840.10008.1.2.2"})


@dataclass(frozen=True, slots=True)
class Offer:
    """Storage classes, in a study and not, each with any of the transfer syntaxes; and Verification."""

    storage_classes: frozenset[str]
    non_patient_classes: frozenset[str]
    transfer_syntaxes: frozenset[str]

    def answer(self, contexts: Iterable[ProposedContext]) -> list[ContextResult]:
        """Take every known context in the first of its transfer syntaxes that is known, as the requestor prefers."""
        return [self._result(context) for context in contexts]

    def _result(self, context: ProposedContext) -> ContextResult:
        known = self._syntaxes_of(context.abstract_syntax)
        syntax = next((uid for uid in context.transfer_syntaxes if uid in known), "")
        refusal = NO_SUCH_TRANSFER_SYNTAX if known else NO_SUCH_ABSTRACT_SYNTAX
        return ContextResult(context.context_id, ACCEPTANCE if syntax else refusal, context.abstract_syntax, syntax)

    def _syntaxes_of(self, abstract_syntax: str) -> frozenset[str]:
        if abstract_syntax == VERIFICATION:
            return _NATIVE_SYNTAXES
        is_storage = abstract_syntax in self.storage_classes or abstract_syntax in self.non_patient_classes
        return self.transfer_syntaxes if is_storage else frozenset()

    def needs_study(self, abstract_syntax: str) -> bool:
        """True when an instance of the class must have a Study Instance UID."""
        return abstract_syntax not in self.non_patient_classes
