"""The fair queue alone: no job is lost, the bound holds, and clients share by frames."""

from __future__ import annotations

from collections import Counter, defaultdict
from itertools import combinations

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from testbed.server.fair_queue import FairQueue, Job

CLIENTS = ("ipv4:10.0.0.1:1", "ipv4:10.0.0.1:2", "ipv4:10.0.0.2:1", "ipv6:%5Bfe80::1%5D:7", "unix:")
TAILS = ((5, 2), (3, 1))


def job(
    client: str, frames: int = 1, tail: tuple[int, int] = TAILS[0], deadline_s: float | None = None
) -> Job:
    one = Job(*tail, np.zeros((frames, 1), np.uint8), arrived_s=0.0, deadline_s=deadline_s)
    one.client = client
    return one


def host(one: Job) -> str:
    return one.client.rpartition(":")[0]


def put(queue: FairQueue, one: Job) -> list[Job]:
    out = queue.gives_way(one)
    if out != [one]:
        for other in out:
            queue.remove(other)
        queue.add(one)
    return out


def serve(queue: FairQueue) -> list[Job]:
    batch, _ = queue.gather()
    queue.take(batch)
    return batch


def held(jobs: list[Job], **of: str) -> int:
    return sum(
        j.frames
        for j in jobs
        if of.get("client", j.client) == j.client and of.get("host", host(j)) == host(j)
    )


arrivals = st.builds(
    job,
    st.sampled_from(CLIENTS),
    st.integers(1, 4),
    st.sampled_from(TAILS),
    st.sampled_from([None, 5.0, 15.0]),
)
steps = st.lists(st.one_of(arrivals, st.sampled_from(["serve", "withdraw", "expire"])), max_size=80)


@settings(max_examples=60, deadline=None)
@given(steps, st.integers(1, 12))
def test_no_job_is_lost_and_the_bound_holds(steps: list[Job | str], limit: int) -> None:
    queue = FairQueue(limit, max_batch=4)
    waiting: list[Job] = []
    now_s = 0.0
    for step in steps:
        if isinstance(step, Job):
            out = put(queue, step)
            waiting = [j for j in [*waiting, step] if j not in out]
        elif step == "serve" and waiting:
            batch = serve(queue)
            assert batch  # work conserving: who asks gets something whenever anything waits
            assert all(j in waiting for j in batch)
            assert len(set(batch)) == len(batch)
            waiting = [j for j in waiting if j not in batch]
        elif step == "withdraw" and waiting:
            queue.remove(waiting.pop(len(waiting) // 2))
        elif step == "expire":
            now_s += 10.0
            late = queue.expired(now_s)
            assert late == [j for j in waiting if j.deadline_s and j.deadline_s <= now_s]
            for one in late:
                queue.remove(one)
                waiting.remove(one)
        assert list(queue) == waiting
        assert queue.frames == held(waiting)
        assert queue.frames <= limit or len(queue) == 1
    while len(queue):
        batch = serve(queue)
        waiting = [j for j in waiting if j not in batch]
    assert waiting == []
    assert queue.frames == 0


@settings(max_examples=60, deadline=None)
@given(steps)
def test_a_batch_has_one_tail_is_led_by_the_oldest_and_keeps_each_clients_order(
    steps: list[Job | str],
) -> None:
    queue = FairQueue(40, max_batch=4)
    for step in steps:
        if isinstance(step, Job):
            put(queue, step)
        elif len(queue):
            before = list(queue)
            batch = serve(queue)
            assert len({(j.exit, j.split) for j in batch}) == 1
            assert held(batch) <= 4
            for client in {j.client for j in batch}:
                mine = [j for j in before if j.client == client]
                same_tail = [j for j in mine if j.exit == batch[0].exit]
                took = [j for j in batch if j.client == client]
                assert took == same_tail[: len(took)]
            assert batch[0] == next(j for j in before if j.client == batch[0].client)


@given(st.lists(arrivals, max_size=40), arrivals, st.integers(4, 20))
def test_who_holds_more_gives_way_with_its_newest(
    before: list[Job], newcomer: Job, limit: int
) -> None:
    queue = FairQueue(limit, max_batch=4)
    for one in before:
        put(queue, one)
    waiting = list(queue)
    out = queue.gives_way(newcomer)
    assert list(queue) == waiting  # it only says who
    left = [j for j in [*waiting, newcomer] if j not in out]
    hosts, connections = {host(newcomer)}, {newcomer.client}
    hosts |= {host(j) for j in waiting}
    connections |= {j.client for j in waiting if host(j) == host(newcomer)}
    own_host = held([*waiting, newcomer], host=host(newcomer))
    own = held([*waiting, newcomer], client=newcomer.client)
    if out == [newcomer]:
        assert queue.frames + newcomer.frames > limit
        # It held more than an even share: of the queue, or of what its host may hold.
        assert own_host * len(hosts) > limit
        assert len(hosts) > 1 or own * len(connections) > limit
        return
    assert held(left) <= limit or left == [newcomer]
    for one in out:
        others = host(one) != host(newcomer)
        # Its own host may have given way before, with another connection.
        assert held(waiting, host=host(one)) > held(left, host=host(newcomer)) or not others
        assert held(waiting, client=one.client) > own or others
        mine = [j for j in waiting if j.client == one.client]
        gone = [j for j in mine if j in out]
        assert gone == mine[-len(gone) :]


@settings(max_examples=25, deadline=None)
@given(st.data(), st.integers(1, 8), st.integers(2, 5))
def test_waiting_clients_get_the_same_frames_whatever_they_ask_for(
    data: st.DataObject, max_batch: int, n_clients: int
) -> None:
    """Shares among clients that always wait: connections of a host, and hosts whatever their
    connections, differ by a constant however long it goes on."""
    names = data.draw(st.lists(st.sampled_from("AB"), min_size=n_clients, max_size=n_clients))
    clients = [f"{name}:{k}" for k, name in enumerate(names)]
    rng = np.random.default_rng(data.draw(st.integers(0, 2**32 - 1)))
    sizes = {client: int(rng.integers(1, max_batch + 1)) for client in clients}
    tails = {client: TAILS[rng.integers(2)] if rng.random() < 0.7 else None for client in clients}
    queue = FairQueue(10**6, max_batch)
    served: Counter[str] = Counter()
    seen: dict[tuple[str, str], list[int]] = defaultdict(list)
    for _ in range(150):
        for client in clients:
            while sum(j.client == client for j in queue) < max_batch:
                size = sizes[client] if rng.random() < 0.8 else 1
                queue.add(job(client, size, tails[client] or TAILS[rng.integers(2)]))
        for one in serve(queue):
            served[one.client] += one.frames
            served[host(one)] += one.frames
        for pair in (*combinations(clients, 2), *combinations(sorted(set(names)), 2)):
            seen[pair].append(served[pair[0]] - served[pair[1]])
    for (first, second), lead in seen.items():
        if host_of(first) == host_of(second):
            assert max(lead) - min(lead) <= 4 * max_batch + 1


def host_of(name: str) -> str:
    """Host of a connection; of a host itself nothing, so that hosts compare with each other."""
    return name.rpartition(":")[0]


def test_a_popular_tail_does_not_starve_another() -> None:
    """A client with one job at a time, against four that fill every batch of another tail."""
    queue = FairQueue(10**6, max_batch=8)
    hoarders = [f"host:{k}" for k in range(4)]
    for client in hoarders * 64:
        queue.add(job(client))
    polite = job("host:9", tail=TAILS[1])
    queue.add(polite)
    waits, waited = [], 0
    for _ in range(200):
        batch = serve(queue)
        waited += 1
        for one in batch:
            queue.add(job(one.client, tail=(one.exit, one.split)))
        if batch[0].client == "host:9":
            waits.append(waited)
            waited = 0
    assert max(waits) <= 2  # its own batch and at most one more
    assert len(waits) >= 100


def test_a_client_that_was_away_has_saved_nothing() -> None:
    queue = FairQueue(10**6, max_batch=4)
    for _ in range(100):
        queue.add(job("a:1"))
        queue.add(job("b:1"))
    for _ in range(60):  # "c" is away; once it comes, each is given a third
        if len(queue) == 120:
            break
        serve(queue)
    for _ in range(60):
        queue.add(job("c:1", tail=TAILS[1]))
    served: Counter[str] = Counter()
    for _ in range(24):
        for one in serve(queue):
            served[one.client] += one.frames
            queue.add(job(one.client, tail=(one.exit, one.split)))
    assert abs(served["c:1"] - served["a:1"]) <= 4 * 4 + 1
    assert abs(served["c:1"] - served["b:1"]) <= 4 * 4 + 1


def test_ever_new_connections_do_not_keep_one_from_its_turn() -> None:
    queue = FairQueue(10**6, max_batch=4)
    queue.add(job("host:polite", tail=TAILS[1]))
    for k in range(400):
        queue.add(job(f"host:{k}", frames=4))
    leaders = []
    for k in range(400, 801):
        queue.add(job(f"host:{k}", frames=4))
        leaders.append(serve(queue)[0].client)
    assert "host:polite" in leaders


def test_new_connections_buy_a_host_no_more() -> None:
    """A host that opens a connection for each job gets as much as one with a single one."""
    queue = FairQueue(10**6, max_batch=4)
    served: Counter[str] = Counter()
    for k in range(300):
        queue.add(job(f"many:{k}"))
        queue.add(job("one:1"))
    for k in range(300, 400):
        for one in serve(queue):
            served[host(one)] += one.frames
        queue.add(job(f"many:{k}"))
    assert abs(served["many"] - served["one"]) <= 4 * 4 + 1


def test_a_newcomer_takes_the_place_of_the_newest_job_of_who_holds_the_most() -> None:
    queue = FairQueue(4, max_batch=4)
    many = [job("a:1"), job("b:1"), job("a:1"), job("a:1")]
    for one in many:
        assert put(queue, one) == []
    newcomer, another = job("b:1"), job("b:1")
    assert put(queue, newcomer) == [many[3]]
    assert put(queue, another) == [another]  # two each: who comes now gives way
    assert list(queue) == [*many[:3], newcomer]


def test_a_job_larger_than_the_queue_waits_alone() -> None:
    queue = FairQueue(4, max_batch=8)
    large = job("a:1", frames=8)
    assert put(queue, large) == []
    assert put(queue, job("b:1")) == [large]  # it holds the most
    assert put(queue, large) == [large]
    assert queue.frames == 1
