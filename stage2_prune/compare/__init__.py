"""Compare saved results with each other by paired statistics (`compare`)."""
