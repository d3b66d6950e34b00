"""Real-time super-resolution overlay for game windows.

The package reads in frame order: window -> capture -> infer -> present -> hud -> trace.
`pipeline` is the only module that knows all stages; `cli` starts it.
"""

__version__ = "0.1.0"
