"""Decisions of a backtest as messages on topics of their own."""
