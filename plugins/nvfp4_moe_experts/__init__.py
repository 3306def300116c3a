"""MoE experts with NVFP4 weights: e2m1 codes, an e4m3 scale a row and 16 inputs, global ones."""
