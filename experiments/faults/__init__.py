"""Experiments that kill runs, fill their disks and repeat them."""
