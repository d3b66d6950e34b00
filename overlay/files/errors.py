"""The errors of files that are read and written.

    OverlayError
      FileError         exit 1     one file cannot be read, done or written; the others can

A message names the file, what is wrong, and what to do.
"""

from __future__ import annotations

from overlay.errors import OverlayError


class FileError(OverlayError):
    """A file cannot be read, done or written."""
