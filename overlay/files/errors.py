"""The errors of files that are read and written.

    OverlayError
      FileError         exit 1     one file cannot be read, done or written; the others can
        SourceDamaged   exit 1     it will fail there again, whoever reads it
      WorkersLost       exit 1     machines of a cluster went away; the same work may do later

A message names the file, what is wrong, and what to do.
"""

from __future__ import annotations

from overlay.errors import OverlayError


class FileError(OverlayError):
    """A file cannot be read, done or written."""


class SourceDamaged(FileError):
    """What a file holds cannot be done; another attempt would fail at the same place."""


class WorkersLost(OverlayError):
    """The machines of a cluster that did some work went away."""
