"""The live kernels over columns, with the online model behind them."""
