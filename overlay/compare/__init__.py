"""Pictures against each other: `overlay compare`.

`pairs` finds what belongs together, `measure` reads it and gives figures, `sheet` draws it into
one picture, `page` makes an HTML page of it (with `script`), `cli` is the command. Imports nothing
heavy.
"""
