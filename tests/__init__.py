"""The tests; a package so that shared things can be imported as `tests.games`."""
