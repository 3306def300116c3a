"""The bundle's one room: its format as dataclasses, reading it, writing it."""
