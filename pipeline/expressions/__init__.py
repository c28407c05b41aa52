"""Conditions over the fields of one transaction: their grammar, their parser and their evaluation."""
