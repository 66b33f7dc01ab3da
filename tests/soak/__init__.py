"""The soak: processes at work in shared stores, killed with SIGKILL at random moments, and a count of what went wrong.

    python -m tests.soak --kills 2000

A *lane* plays one *troupe* after the other: an owner, workers by some start method, the guardian of their store. While they
work, the lane kills workers and guardian, and in the end the owner, or all of them, or nobody.
"""
