"""What is done with a score: the policy that decides, and the reasons that an analyst reads."""
