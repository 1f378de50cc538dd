"""Update functions of the device's link estimates.

Arithmetic only, so that floats (`testbed.policy.observer.Observer`) and arrays (the
simulator's lanes) take the same path, bit for bit.
"""

from __future__ import annotations

from typing import Any, Final

FORGET_PER_TRANSFER: Final = 0.85
"""Weight that old transfers keep at each new one: a memory of about 7 transfers."""
FORGET_TAU_S: Final = 5.0
"""After a pause of this length old transfers keep half their weight (tau / (tau + pause)).

Hyperbolic rather than exponential: it needs no transcendental function, so scalars and
arrays agree bit for bit, and a long pause does not erase everything.
"""
PRIOR_MS_PER_KB: Final = 0.4
"""20 Mbit/s: the median uplink of driving 5G in the IFIP Networking 2024 study."""
PRIOR_RTT_MS: Final = 50.0
"""Median round trip of the same study (50 to 60 ms) and of drives in sa25."""
PRIOR_RTT_WEIGHT: Final = 0.01
PRIOR_SLOPE_WEIGHT: Final = 0.5
"""Ridge weights: one transfer outweighs the prior round trip a hundredfold (a stronger one
would bias the slope of a fast link); the slope moves once payload sizes differ by about a
kilobyte, and takes little of what one size alone shows."""
SMOOTHING: Final = 0.25
"""Weight of the newest transfer in the running mean and spread."""


EARLY_TIMEOUT_EXCHANGES: Final = 2.0
"""The early time-out, in mean exchange times."""
EARLY_TIMEOUT_SPREADS: Final = 4.0
"""Deviations that are added to it."""


def forget(age_s: Any) -> Any:
    """Factor on the weight of old transfers when a new one comes `age_s` after the last."""
    return FORGET_PER_TRANSFER * (FORGET_TAU_S / (FORGET_TAU_S + age_s))


def fit_link(s0: Any, sx: Any, sxx: Any, sy: Any, sxy: Any) -> tuple[Any, Any]:
    """Ridge-regularised line through the weighted transfers.

    Args:
        s0, sx, sxx, sy, sxy: weighted sums of 1, x, x^2, y, xy with x = kilobytes sent
            and y = transfer_ms.

    Returns:
        (intercept_ms, slope_ms_per_kb). The prior keeps the 2 x 2 system regular, with
        one payload size as with many.
    """
    a = s0 + PRIOR_RTT_WEIGHT
    d = sxx + PRIOR_SLOPE_WEIGHT
    p = sy + PRIOR_RTT_WEIGHT * PRIOR_RTT_MS
    q = sxy + PRIOR_SLOPE_WEIGHT * PRIOR_MS_PER_KB
    det = a * d - sx * sx
    return (p * d - q * sx) / det, (q * a - p * sx) / det


def early_timeout_ms(mean: Any, spread: Any, server_wait: Any) -> Any:
    """The early time-out of an exchange, ms.

    Args:
        mean, spread: of recent transfers, as `smooth` keeps them, ms.
        server_wait: last reported wait at the server, ms.

    Returns:
        Twice the mean exchange time plus four deviations: TCP's retransmission time-out (RFC 6298:
        mean + 4 deviations) with one more mean, since one late answer costs less than an exchange
        that times out.
    """
    return EARLY_TIMEOUT_EXCHANGES * (mean + server_wait) + EARLY_TIMEOUT_SPREADS * spread


def smooth(mean: Any, spread: Any, value: Any) -> tuple[Any, Any]:
    """Running mean and mean absolute deviation after one more `value`."""
    deviation = value - mean
    return mean + SMOOTHING * deviation, spread + SMOOTHING * (abs(deviation) - spread)
