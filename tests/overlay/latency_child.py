"""A child of the latency tests, with nothing of the self-test in it."""

from __future__ import annotations

import os
import sys
import time

from overlay.latency.child import end_with_parent, say

end_with_parent()
if sys.argv[1:] == ["error"]:
    say(error="no display for a test")
elif sys.argv[1:] == ["crash"]:
    os._exit(9)
else:
    say(pid=os.getpid())
    time.sleep(60)
