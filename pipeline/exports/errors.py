"""The errors of making or reading an export."""


class ExportError(ValueError):
    """The topics cannot be exported as it was asked, or what was exported is not whole; the text says what to do."""
