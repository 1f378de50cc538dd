"""One frame's measurement, and its Parquet form.

Durations come from a monotonic clock. A figure that could not be measured is None
(null in Parquet), never 0. ``energy_source`` says which meter made the energy figures.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Measurement:
    """What one frame cost and what came out of it.

    Attributes:
        frame_id: running number of the frame in its run, from 0.
        track: running track number in its run, from 0.
        frame_in_track: frame number within its track, from 0.
        label: true class if known, for scoring only.
        action: canonical number of the action decided, 0..19.
        exit_used: exit that gave the answer (differs from the action's after a fallback).
        captured_s: capture time since the start of the run, seconds.
        queue_ms: wait for the device to be free.
        head_ms: blocks (and exit head if local) on the device.
        encode_ms: bottleneck or frame encoder on the device; None if none ran.
        transfer_ms: last byte handed to the socket until the answer is read, less
            `server_queue_ms` and `server_ms`; None if nothing was sent.
        server_queue_ms: wait at the server, as the server reports it.
        server_ms: decoder and tail at the server, as the server reports it.
        fallback_ms: local compute after the link or server failed; None if not needed.
        delay_ms: total processing delay, capture until the answer is known.
        uplink_bytes: payload bytes handed to the transport (0 if local).
        downlink_bytes: answer bytes.
        prediction: class answered; None if the frame was skipped.
        confidence: calibrated probability of that class.
        correct: prediction equals label; None without a label.
        compute_mj: device energy of computing, millijoules.
        radio_mj: modem energy: sending, waiting, receiving and tail until the next frame.
        idle_mj: device energy while it waits for this frame's answer.
        energy_mj: sum of the three; None if one is None.
        energy_source: name of the meter(s), such as ``model:pi4-class``.
        status: ``ok``, ``fallback`` or ``skipped``.
        reason: why, where status is not ``ok``; otherwise empty.
        uplink_mbps: true mean uplink capacity of the link while this frame was sent, if
            the link says so; None otherwise (never part of an observation).
        rtt_ms: true base round trip of the link at that time, likewise.
        probes: probes sent before the next frame (`testbed.device.probing`);
            their modem energy is in `radio_mj`.
        probe_bytes: bytes they put on the uplink, framing included.
        looks: exits that a staged policy looked at on the device, bit e - 1 for exit e; 0 if
            the frame was decided in one go.
    """

    frame_id: int
    track: int
    frame_in_track: int
    label: int | None
    action: int
    exit_used: int
    captured_s: float
    queue_ms: float
    head_ms: float
    encode_ms: float | None
    transfer_ms: float | None
    server_queue_ms: float | None
    server_ms: float | None
    fallback_ms: float | None
    delay_ms: float
    uplink_bytes: int
    downlink_bytes: int
    prediction: int | None
    confidence: float | None
    correct: bool | None
    compute_mj: float | None
    radio_mj: float | None
    idle_mj: float | None
    energy_mj: float | None
    energy_source: str
    status: str
    reason: str
    uplink_mbps: float | None
    rtt_ms: float | None
    probes: int = 0
    probe_bytes: int = 0
    looks: int = 0
