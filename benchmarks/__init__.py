"""Benchmarks: shmarray, its rivals and the machine's own limits, measured side by side in one run.

    python -m benchmarks [--quick] [--only NAME] [--json FILE] [--plot DIR]

From top to bottom; a module imports only from below it:

    __main__        arguments, exit status
    report          a result as a table
    plots           a result as pictures
    conductor       rounds over contenders, each in a process of its own
    contender       what such a process does
    cases/          the questions
    rivals/         one adapter for each way to share arrays
    peer            a second process beside a contender
    host            what was measured on
    measure         samples, percentiles, ratios by round, aims
"""
