"""Files in, files out: pictures and videos upscaled without a game.

`batch` finds the files and counts what became of them, `enlarge` makes a large picture of a small
one, `images` reads and writes one with what belongs to it. `video` makes a video: `video_source`
reads it, `video_models` enlarges its frames, `video_colour` knows what their numbers mean,
`video_encode` and `video_segments` make finished stretches, `video_join` the file. `cli` is the
command. Imports nothing heavy.
"""
