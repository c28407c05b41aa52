"""The second person: who may make a version active that was never active before."""

from pipeline.models.history import VersionHistory
from pipeline.scoring.errors import ModelError
from schemas.messages import Assessment


def refuse_unapproved(history: VersionHistory, what: str, digest: str = "") -> None:
    """Refuse to activate a version that was never active, where one is and a second person has to approve.

    Args:
        history: What `control` has.
        what: The version, for the sentence.
        digest: The version's; empty for one that is not trained yet.

    Raises:
        ModelError: It has to be approved.
    """
    if history.tenures() and not history.activations_of(digest):
        raise ModelError(
            f"FRAUD_PIPELINE_SECOND_APPROVAL is set, and {what} was never active: propose its recipe with "
            "`fraud-pipeline models propose`, for somebody else to approve"
        )


def refuse_proposer(history: VersionHistory, proposal: Assessment, by: str, key_id: str) -> None:
    """Refuse the approval of a version by whoever has proposed it.

    Args:
        history: Has the proposal.
        proposal: What the gate has accepted.
        by: Name that the approver gives.
        key_id: Key that the approver signs with. Empty where records are not signed: names are compared then, which
            nobody can verify.

    Raises:
        ModelError: Proposer and approver are one, or the proposal was not signed.
    """
    if not key_id:
        if proposal.by.strip().casefold() == by.strip().casefold():
            raise ModelError(f"{proposal.by} has proposed this version: somebody else has to approve it")
        return
    signer = history.signer(proposal)
    if signer is None:
        raise ModelError("the proposal of this version was not signed: propose it again, signed")
    if signer == key_id:
        raise ModelError(
            f"this version was proposed with the key that you sign with ({signer}): somebody else has to approve it, "
            "with a key of their own"
        )
