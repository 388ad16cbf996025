"""A method that has seen some clips."""

from __future__ import annotations

import torch

from liteasr.compression import CalibrationBatch

__all__ = ["calibrated"]


def calibrated(model, features, method, batch_size=4):
    """Run the steps of a method up to its decision.

    Args:
        model: A whole Whisper.
        features: Pairs of log-mel features and of frames that hold audio.
        method: The method; it is returned.
        batch_size: Clips at a time.
    """
    method.prepare(model.model.encoder, method.select(model))
    for x, frames in features:
        parts = zip(torch.split(x, batch_size), torch.split(frames, batch_size), strict=True)
        for part in parts:
            method.observe(CalibrationBatch(*part))
    method.reduce(lambda tensor: tensor)
    return method
