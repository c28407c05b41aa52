"""Decisions about scores: the policy, the rules, and the reasons that an analyst reads."""
