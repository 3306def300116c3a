"""Building: engines in processes of their own, and what they need; the C++ runtime; wheels."""
