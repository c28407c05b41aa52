"""What keeps an export from being made or read."""


class ExportError(ValueError):
    """The topics cannot be exported as it was asked; the text says what to do."""
