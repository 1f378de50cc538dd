"""Names the environments for `gymnasium.make` and `gymnasium.make_vec`.

Two ways lead here: ``gymnasium.make("offload_env.registration:sliproad/Offload-v0")`` imports
this module, and `offload_env.register` calls `register` by hand. Gymnasium 1.4 loads no plug-ins.
"""

from __future__ import annotations

# Not from `gymnasium` itself: it may be half imported when it calls us as a plug-in.
from gymnasium.envs import registration

IDS = {
    "sliproad/Offload-v0": (
        "offload_env.env:OffloadEnv",
        "offload_env.vector_env:OffloadVectorEnv",
    ),
    "sliproad/OffloadStaged-v0": (
        "offload_env.staged:OffloadStagedEnv",
        "offload_env.staged_vector:OffloadStagedVectorEnv",
    ),
    "sliproad/OffloadLive-v0": ("offload_env.live:OffloadLiveEnv", None),
    "sliproad/OffloadLiveStaged-v0": ("offload_env.live_staged:OffloadLiveStagedEnv", None),
}
"""Environment id -> entry points of the single and of the vector environment."""


def register() -> None:
    """Register every id that is not registered yet."""
    for name, (single, vector) in IDS.items():
        if name not in registration.registry:
            registration.register(
                name,
                entry_point=single,
                vector_entry_point=vector,
                nondeterministic=vector is None,  # real time is
            )


register()
