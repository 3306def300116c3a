"""What linear attention launches: few tokens one by one, more in chunks."""

from __future__ import annotations

from glm_trt.plugins.common.contract import ACTIVATION
from glm_trt.plugins.common.launch import Buffer, Launch, Launches, Pick, on_hopper
from glm_trt.plugins.linear_attention.contract import CONTRACT

# The chunked kernels keep a state of at most 128 rows in registers.
FEW, MANY = "(S <= 32 or dk > 128)", "S > 32 and dk <= 128"
# The index of the rule in the contract's choice says which inputs it uses.
GATED, DELTA = "update_rule % 2", "update_rule // 2"
N_DECAY, N_BETA = f"G * ({GATED})", f"R * ({DELTA})"
GROUP = "q_num_heads // max(kv_num_heads, 1)"
PER_CHANNEL = f"{N_DECAY} > H"
ONE_QUERY = Pick("q_num_heads == kv_num_heads", (0, 1), exact=True)
CHUNK = 32  # the longest there is
# Wider keys go token by token, yet have room: the workspace may not shrink where a size grows.
CHUNKS = f"(S > 32) * B * H * cdiv(S, {CHUNK})"
WIDEST = 128  # of a key, in chunks


def _recur(when: str, keys: tuple[int, ...], columns: int) -> Launch:
    return Launch(
        "recur_tokens",
        when=f"{FEW} and {when}",
        grid=("cdiv(dv, BLOCK_V)", "B * H", "1"),
        arguments=(
            "query", "key", "value", "past_state", "decay", "beta", "output", "present_state",
            "S", "H", GROUP, "dk", "dv", "has_past_state", N_DECAY, N_BETA, "scale",
        ),
        aligned=("dk", "dv"),
        constants={"BLOCK_K": Pick("dk", keys)},
        configs={"*": {"BLOCK_V": columns, "num_warps": 4, "num_stages": 1}},
    )  # fmt: skip


def _chunked(
    per_channel: bool, keys: tuple[int, ...], query: str, key: str, final_key: str
) -> list[Launch]:
    """The two launches of the chunked form; `query`, `key` and `final_key` as the scan reads."""
    when = f"{MANY} and {'' if per_channel else 'not '}({PER_CHANNEL})"
    constants = {"PER_CHANNEL": Pick(str(int(per_channel)), (int(per_channel),)),
                 "BLOCK_K": Pick("dk", keys)}  # fmt: skip
    prepare = Launch(
        "prepare_chunks",
        when=when,
        grid=("cdiv(S, BLOCK_T)", "B * H", "1"),
        arguments=(
            "query", "key", "decay", "beta", "inverse", "scores", "factors", "scaled_query",
            "scaled_key", "final_key", "S", "H", GROUP, "dk", N_DECAY, N_BETA,
        ),
        aligned=("dk",),
        constants=constants,
        configs={
            "*": {"BLOCK_T": 32, "num_warps": 4, "num_stages": 1},
            "*/float32": {"BLOCK_T": 16, "num_warps": 4, "num_stages": 1},
            **on_hopper({"BLOCK_T": 32, "num_warps": 2, "num_stages": 2}),
        },
    )  # fmt: skip
    scan = Launch(
        "scan_chunks",
        when=when,
        grid=("cdiv(dv, BLOCK_V)", "B * H", "1"),
        arguments=(
            query, key, final_key, "value", "past_state", "inverse", "scores", "factors", "output",
            "present_state", "S", "H", GROUP, "dk", "dv", "has_past_state", N_BETA, "scale",
        ),
        aligned=("dk", "dv"),
        constants=constants | {"ONE_QUERY": ONE_QUERY},
        configs={
            "*": {"BLOCK_T": 32, "BLOCK_V": 32, "num_warps": 8, "num_stages": 2},
            "*/float32": {"BLOCK_T": 16, "BLOCK_V": 16, "num_warps": 8, "num_stages": 1},
            **on_hopper({"BLOCK_T": 32, "BLOCK_V": 64, "num_warps": 4, "num_stages": 5}),
        },
    )  # fmt: skip
    return [prepare, scan]


LAUNCHES = Launches(
    CONTRACT,
    steps=(
        # 16 KB of state a program, in registers.
        _recur("dk > 64 and dk <= 128", (128,), columns=32),
        _recur("(dk <= 64 or dk > 128)", (64, 256), columns=16),
        *_chunked(False, (64, 128), "query", "key", "key"),
        *_chunked(True, (WIDEST,), "scaled_query", "scaled_key", "final_key"),
    ),
    workspace=(
        Buffer("inverse", ACTIVATION, f"{CHUNKS} * {CHUNK * CHUNK}"),
        Buffer("scores", ACTIVATION, f"{CHUNKS} * ({GROUP}) * {CHUNK * CHUNK}"),
        # Chunks of float32 are half as long, so there may be twice as many.
        Buffer("factors", "float32", f"{CHUNKS} * 2 * max({CHUNK}, dk)"),
        Buffer("scaled_query", ACTIVATION,
               f"({PER_CHANNEL}) * {CHUNKS} * ({GROUP}) * {CHUNK * WIDEST}"),
        Buffer("scaled_key", ACTIVATION, f"({PER_CHANNEL}) * {CHUNKS} * {CHUNK * WIDEST}"),
        Buffer("final_key", ACTIVATION, f"({PER_CHANNEL}) * {CHUNKS} * {CHUNK * WIDEST}"),
    ),
    limits=(
        ("kv_num_heads >= 1", "at least one key and value head"),
        ("q_num_heads >= 1 and q_num_heads % kv_num_heads == 0",
         "query heads that are a multiple of the key and value heads"),
        ("KW == H * dk and VW == H * dv", "keys and values of equally wide heads"),
        ("QW == q_num_heads * dk", "queries as wide as the keys"),
        ("dk >= 1 and dk <= 256", "keys of 1 to 256 channels"),
        (f"{GATED} == 0 or has_decay", "a decay for a gated rule"),
        (f"{DELTA} == 0 or has_beta", "a beta for a delta rule"),
        ("not has_decay or G == H or G == H * dk", "a decay a head, or a channel"),
        ("not has_beta or R == 1 or R == H", "a beta a head, or one for all"),
        ("B * H <= 65535", "at most 65535 heads in a batch"),
    ),
)  # fmt: skip
