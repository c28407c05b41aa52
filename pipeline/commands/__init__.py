"""The ``fraud-pipeline`` subcommands, one module each: they parse arguments and hand over."""
