"""The errors of data, training and evaluation.

    DataError           exit 1     anything wrong with data or a configuration that the user gave

A message is one line: what, which file or value, and what to do next.
"""


class DataError(Exception):
    """Base of everything that is wrong with the user's data or configuration."""

    exit_code = 1
