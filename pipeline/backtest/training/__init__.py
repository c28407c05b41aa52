"""Models that a backtest trains: variants, their periods and rows, and renewals."""
