"""Table 1 of the AR-DMVC paper: its numbers, the study that repeats it, and the table beside ours."""
