"""Two hops of transactions without kernels: what a commit alone costs, by client."""
