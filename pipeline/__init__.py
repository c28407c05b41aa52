"""The fraud-detection pipeline: a pure core, adapters around it, and the programs that use both."""
