"""MoE experts with FP8 weights: e4m3 bytes, one scale a block of 128 × 128."""
