"""The only code that talks to the kernel.

Owns: system calls and what they promise, one assumption for each module. Knows nothing of stores or arrays, and
imports nothing of the package. Whatever fails here fails as an `OSError` of the kernel's own.
"""
