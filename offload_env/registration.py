"""Names the environments for `gymnasium.make` and `gymnasium.make_vec`.

``import offload_env`` registers them, and so does any ``gymnasium.make("offload_env:ID")``.
The older ``gymnasium.make("offload_env.registration:ID")`` still works.
"""

from __future__ import annotations

from gymnasium.envs import registration

IDS = {
    "sliproad/Offload-v0": (
        "offload_env.env:OffloadEnv",
        "offload_env.vector_env:OffloadVectorEnv",
    ),
    "sliproad/OffloadStaged-v0": (
        "offload_env.env:OffloadStagedEnv",
        "offload_env.vector_env:OffloadStagedVectorEnv",
    ),
    "sliproad/OffloadLive-v0": ("offload_env.live_env:OffloadLiveEnv", None),
    "sliproad/OffloadLiveStaged-v0": ("offload_env.live_env:OffloadLiveStagedEnv", None),
}
"""Environment id -> entry points of the single and of the vector environment."""


def register() -> None:
    """Register every id that is not registered yet; Gymnasium would warn about a second time.

    Importing the package has done it already, unless Gymnasium was not installed then.
    """
    for name, (single, vector) in IDS.items():
        if name not in registration.registry:
            registration.register(
                name,
                entry_point=single,
                vector_entry_point=vector,
                nondeterministic=vector is None,  # real time is
            )
