"""The same work on a Ray cluster: files are read and written here, all else is done there.

Pictures go to the workers as the bytes of their files and come back as such; a video goes to a
worker once, in pieces, and comes back in segments, which are kept and joined as those made here.

Threads: one for each file that is on its way, and as many for segments as workers take calls; the
caller's gathers what became of the files.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, as_completed, wait
from dataclasses import replace
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING

from engines import load
from overlay.files.batch import Job, Outcome
from overlay.files.cluster_pool import AT_ONCE, Workers
from overlay.files.cluster_worker import VideoTask
from overlay.files.enlarge import Wish, model_name

if TYPE_CHECKING:
    from overlay.files.video import Progress, VideoWish
    from overlay.files.video_segments import Segment


class Cluster(Workers):
    """Does files on a cluster; arguments and errors as of `Workers`."""

    def __init__(self, address: str, wish: Wish) -> None:
        super().__init__(address, wish)
        self._keys = count()
        self._segments = self.pool(self.places * AT_ONCE)
        self._files = {
            "image": self.pool(self.places * AT_ONCE),
            "video": self.pool(self.places + 1),  # one is read or joined while others are made
        }

    def spread(self, do: Callable[[Job], Outcome], jobs: Sequence[Job]) -> Iterator[Outcome]:
        """Do jobs at once, as many as keep the workers busy, see `batch.work`."""
        futures = [self._files[job.kind].submit(do, job) for job in jobs]
        for future in as_completed(futures):
            yield future.result()

    def picture(self, source: Path, target: Path, quality: int) -> None:
        """Upscale a picture to a file.

        Raises:
            OverlayError, EngineError, MemoryError: see `images` and `enlarge`.
        """
        from overlay.files import images

        data = images.content(source)
        large = self.call(source, "picture", data, str(source), str(target), self.there, quality)
        images.keep(large, target)

    def video(self, source: Path, target: Path, coded: VideoWish, progress: Progress) -> None:
        """Upscale a video to a file, see `video.upscale`; its encoder is always software."""
        from overlay.files import video
        from overlay.files.video_models import layout_for
        from overlay.files.video_segments import Kept, cuts_of
        from overlay.files.video_source import read_clip

        coded = replace(coded, encoder="software")
        length = source.stat().st_size if source.is_file() else 0
        clip = read_clip(source)
        scale = self.call(source, "scale", self.there, clip.size)
        size, codec = video.prepared(clip, self.wish, scale, coded, target)
        coding = video.coding_of(clip, layout_for(clip), size, codec, coded)
        model = model_name(self.wish, clip.size)
        sha256 = load.locate(model).sha256
        kept = Kept(target, video.recipe(clip, model, sha256, self.wish, coding))
        task = VideoTask(str(next(self._keys)), clip, coding, self.there)
        number = len(cuts_of(clip, coding.length))
        try:
            video.make_all(
                kept, clip, number,
                lambda missing, told: self._made(task, length, missing, told), progress,
            )  # fmt: skip
        finally:
            self.forget(task.key)
        video.finish(kept, clip, number, target)

    def _made(
        self, task: VideoTask, size: int, numbers: list[int], told: Callable[[int], None]
    ) -> Generator[Segment, None, None]:
        """Make segments, see `video.Make`."""
        left = iter(numbers)
        going: set[Future[Segment]] = set()
        try:
            while True:
                for number in left:
                    going.add(
                        self._segments.submit(
                            self.call,
                            task.clip.path,
                            "segment",
                            task.key,
                            number,
                            video=(task, size),
                        )
                    )
                    if len(going) >= AT_ONCE * self.places:
                        break
                if not going:
                    return
                done, going = wait(going, return_when=FIRST_COMPLETED)
                for future in done:
                    segment = future.result()
                    told(len(segment.times))
                    yield segment
        finally:
            for future in going:
                future.cancel()
