"""One exchange with the server: payload up, wait and work there, answer down.

Once in plain floats for one episode, once in arrays for many: the same operations in the same
order, so that both agree bit for bit.
"""

from __future__ import annotations

from typing import Generic, NamedTuple

import numpy as np
from numpy.typing import NDArray

from offload_env.episode import Plan
from offload_env.outcome import Number
from offload_env.server_load import CELL_MS
from offload_env.trace_pool import Lane
from offload_env.world import POOL, World

Floats = NDArray[np.float64]


class Exchange(NamedTuple, Generic[Number]):
    """The exchange that sending one payload would give, or one in every lane (arrays (B,)).

    Attributes:
        size: bytes on the uplink.
        left_ms: when the last of them has left.
        transfer_ms: the exchange less the server's wait and compute.
        wait_ms: at the server.
        total_ms: from the hand-over to the radio until the answer.
    """

    size: Number
    left_ms: Number
    transfer_ms: Number
    wait_ms: Number
    total_ms: Number


class Exchanges:
    """Exchanges of one episode at a time; call `start` first.

    Args:
        world: for the link, the server's other users and the network's fixed time.
    """

    def __init__(self, world: World) -> None:
        self._pool, self._net = world.pool, world.cost.net_ms
        # A plain list: indexing it is several times faster than indexing an array.
        self._work: list[float] = world.server_work_ms.tolist()

    def start(self, plan: Plan) -> None:
        """Begin the episode of a plan."""
        self._send = self._pool.sender(plan.trace)
        self._offset, self._cell0 = plan.offset_ms, plan.server_cell

    def of(self, sent: float, radio_free: float, size: float, server_ms: float) -> Exchange[float]:
        """The exchange of one payload.

        Args:
            sent: when it is handed to the radio, milliseconds since the start of the episode.
            radio_free: when all payloads handed over before have left.
            size: bytes on the uplink.
            server_ms: compute time at the server.
        """
        radio = sent if sent > radio_free else radio_free
        left, up = self._send(radio + self._offset, 8.0 * size)
        left -= self._offset
        arrive = left + up
        cell = int(arrive / CELL_MS)
        at = self._cell0 + cell
        wait = self._work[at if at < POOL else POOL - 1] - (arrive - cell * CELL_MS)
        wait = wait if wait > 0.0 else 0.0
        down = self._send.one_way(((arrive + wait) + server_ms) + self._offset)
        transfer = (left - sent) + up + down + self._net
        return Exchange(size, left, transfer, wait, transfer + wait + server_ms)


class BatchExchanges:
    """`Exchanges` for many episodes at once.

    Args:
        world: as in `Exchanges`.
    """

    def __init__(self, world: World) -> None:
        self._pool, self._net = world.pool, world.cost.net_ms
        self._work = world.server_work_ms if world.server_work_ms.any() else None

    def of(
        self,
        lane: Lane,
        offset_ms: Floats,
        server_cell: NDArray[np.int64],
        sent: Floats,
        radio_free: Floats,
        size: Floats,
        server_ms: Floats,
    ) -> Exchange[Floats]:
        """The exchange of one payload in every lane, arrays (B,).

        Args:
            lane: constants of each episode's trace.
            offset_ms, server_cell: of each episode's plan.
            sent, radio_free, size, server_ms: as in `Exchanges.of`.
        """
        left, up = self._pool.send(lane, np.maximum(sent, radio_free) + offset_ms, 8.0 * size)
        left -= offset_ms
        arrive = left + up
        if self._work is None:
            wait = np.zeros_like(arrive)
        else:
            wait = server_wait_ms(self._work, server_cell, arrive)
        down = self._pool.one_way(lane, ((arrive + wait) + server_ms) + offset_ms)
        transfer = (left - sent) + up + down + self._net
        return Exchange(size, left, transfer, wait, transfer + wait + server_ms)


def server_wait_ms(work_ms: Floats, first_cell: NDArray[np.int64], arrive_ms: Floats) -> Floats:
    """Wait at the server of payloads that arrive at given times of their episodes.

    Args:
        work_ms: float64 (`POOL`,), `World.server_work_ms`.
        first_cell: cells in which the episodes start; broadcasts to the shape of `arrive_ms`.
        arrive_ms: float64, since the start of each episode.
    """
    cell = (arrive_ms / CELL_MS).astype(np.int64)
    work = work_ms.take(np.minimum(first_cell + cell, POOL - 1))
    wait: Floats = np.maximum(work - (arrive_ms - cell * CELL_MS), 0.0)
    return wait
