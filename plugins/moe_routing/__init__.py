"""MoE routing: choose each token's experts by biased sigmoid scores within the best groups."""
