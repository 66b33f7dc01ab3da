"""The elevation model, shaded in parallel: what shmarray is for, on real input, next to the same work by pickling.

Bottom up: `interrupts` and `measure` ask the kernel, `terrain` and `png` compute, `sources` reads files, `ways` does
the work in both ways, `report` tells people and programs, `run` puts them together (`python -m shmarray demo`).
"""
