"""The guardian: a process that outlives the owner of a store to clean up after it, and serves what needs a server.

Owns: starting that process (`launch`), what it watches (`watch`), what it serves (`manager`), its first lines (`__main__`).
Must not know: NumPy, arrays.
"""
