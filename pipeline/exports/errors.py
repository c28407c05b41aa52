"""What keeps an export from being made or read."""


class ExportError(ValueError):
    """The topics cannot be exported as it was asked, or what was exported is not whole; the text says what to do."""
