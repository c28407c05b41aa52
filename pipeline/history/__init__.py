"""Files and tables of transactions: their columns are found, named, and read as kernels take them."""
