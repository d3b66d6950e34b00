"""Files in, files out: pictures upscaled without a game.

`batch` finds the files and counts what became of them, `enlarge` makes a large picture of a small
one, `images` reads and writes one with what belongs to it, `cli` is the command. Imports nothing
heavy.
"""
