"""A video with its classes laid over it, through PyAV. One frame is in memory at a time; sound is left out."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from udaseg.deploy.model import Model
from udaseg.errors import UserError
from udaseg.files import refuse_special, replacing


def overlay(model: Model, source: Path, target: Path, *, frames: Callable[[int, int], None]) -> None:
    """Write an H.264 mp4 of the same size (odd sides one pixel less) and timing; ``frames``: told (done, expected)."""
    refuse_special(source)
    try:
        import av
    except ImportError:
        raise UserError(f'{source}: videos need PyAV; install it: pip install "udaseg[video]"') from None
    try:
        with (
            replacing(target, ".mp4") as temporary,
            temporary.open("wb") as file,  # which tells when the disk is full
            av.open(str(source)) as reader,
            av.open(file, "w", format="mp4") as writer,
        ):
            if not reader.streams.video:
                raise UserError(f"{source}: has no picture track")
            _convert(model, reader, writer, frames)
    except av.error.FFmpegError as error:
        raise UserError(f"{source}: cannot be read as a video ({error.strerror})") from None


def _convert(model: Model, reader: Any, writer: Any, frames: Callable[[int, int], None]) -> None:
    from av import VideoFrame

    track = reader.streams.video[0]
    encoder = None
    for done, frame in enumerate(reader.decode(track), 1):
        turns = round(getattr(frame, "rotation", 0) / 90)  # a phone's upright video is stored lying
        image = np.ascontiguousarray(np.rot90(frame.to_ndarray(format="rgb24"), turns))
        shown = np.asarray(model.predict(image).overlay())
        height, width = (side - side % 2 for side in shown.shape[:2])
        if encoder is None:
            encoder = writer.add_stream("libx264", rate=track.average_rate or 25)
            encoder.width, encoder.height, encoder.pix_fmt = width, height, "yuv420p"
            encoder.codec_context.time_base = track.time_base
        made = VideoFrame.from_ndarray(np.ascontiguousarray(shown[:height, :width]), format="rgb24")
        made.pts, made.time_base = frame.pts, frame.time_base
        writer.mux(encoder.encode(made))
        frames(done, max(track.frames, done))
    if encoder is None:
        raise UserError(f"{reader.name}: has no frames")
    writer.mux(encoder.encode())
