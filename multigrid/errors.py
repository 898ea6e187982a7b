"""The one exception for what a user got wrong, so that every command can tell it from a defect of the program."""


class InputError(ValueError):
    """A file, a key or a value given by the user is not usable.

    The message is one line: the place, what was expected and what was received. Commands print it and exit with 2.
    """
