"""MoE experts: the weighted sum of each token's SwiGLU experts."""
