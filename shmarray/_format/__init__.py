"""Bytes and records: pure functions, with no I/O, no clock and no process.

Owns: what a name may be and how it is spelt as a file name, the layout of a block and of a control file, the words of a
handle, dtypes and trees as text. All of it can be tested without a single segment.
Must not know: that there is a kernel.
"""
