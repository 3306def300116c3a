"""From differences to a verdict: what is measured, what is allowed, what is waived."""
