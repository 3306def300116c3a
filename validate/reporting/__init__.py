"""Reports as text, page and data; one held against an earlier one."""
