"""What can go wrong with the embedded broker."""


class BrokerError(RuntimeError):
    """The embedded broker cannot start or has died; the text says why and what to do."""


class BrokerInUse(BrokerError):
    """Another process holds the data directory."""
