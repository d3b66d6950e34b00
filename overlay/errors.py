"""The errors of the live program.

    OverlayError                exit 1
      SettingsError             exit 2   an option, configuration file or profile is wrong
      BackendUnavailable        exit 4   a back end's library, driver or device is missing
      CaptureError              exit 3
        WindowNotFound                   nothing matches what was asked for
        CaptureLost                      transient: the source comes back by itself
        SourceClosed                     the game closed, or the replay came to its end
      PresentError              exit 6
        DisplayLost                      the display server is gone
      TraceError                exit 1   a trace cannot be written or read
      FileError                 exit 1   a picture cannot be read or written, see `files.errors`

A message says what happened, with which value, and what to do next. Only `CaptureLost` is
transient: the pipeline retries it; everything else ends the run with a complete trace.
Errors about models and engines have their own tree in `engines.errors` (exit 5).
"""


class OverlayError(Exception):
    """Base of everything the live program raises on purpose."""

    exit_code = 1


class SettingsError(OverlayError):
    """An option, configuration file or profile is wrong."""

    exit_code = 2


class BackendUnavailable(OverlayError):
    """A back end cannot be used here; the message holds the reason and the fix."""

    exit_code = 4


class CaptureError(OverlayError):
    """Frames cannot be had from the source."""

    exit_code = 3


class WindowNotFound(CaptureError):
    """No window matches what was asked for."""


class CaptureLost(CaptureError):
    """The source gives no frames for now; worth trying again."""


class SourceClosed(CaptureError):
    """The game's window closed, or the replay came to its end."""


class PresentError(OverlayError):
    """The result cannot be shown."""

    exit_code = 6


class DisplayLost(PresentError):
    """The connection to the display server broke."""


class TraceError(OverlayError):
    """A trace file cannot be written or read."""
