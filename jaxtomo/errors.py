"""The errors a user can cure: every message names the file, the fact and the cure."""


class InputError(ValueError):
    """Bad input or metadata. The command line exits with 3."""


class DoesNotFitError(ValueError):
    """The problem needs more memory than there is. The command line exits with 4 and names the setting that fits."""
