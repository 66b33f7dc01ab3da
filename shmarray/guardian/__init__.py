"""The guardian: a process that outlives the owner of a store to clean up after it, and starts the store's host.

Owns: starting that process (`launch`), what it watches (`watch`), its door (`server`), its host (`keeper`), its first lines (`__main__`).
Must not know: NumPy, arrays, what runs in a host.
"""
