"""Decisions about scores: the policy, and the reasons that an analyst reads."""
