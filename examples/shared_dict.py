"""A dict, a list and a namespace in shared memory, without a manager process; arrays go in as handles."""

from __future__ import annotations

import multiprocessing as mp

import numpy as np

import shmarray as sa
from shmarray.managed import Namespace, SharedDict, SharedList


def train(results: SharedDict, log: SharedList, settings: Namespace) -> None:
    """Read the settings, leave a result, say so."""
    with results.get_lock():  # for a change that depends on what is there
        results["runs"] += 1
    weights = results["weights"]  # not a copy: the array itself
    weights += settings.rate
    log.append(f"trained at {settings.rate}")


if __name__ == "__main__":
    with sa.Store() as store:
        shared = store.dict(runs=0, weights=store.put(np.zeros(3)))
        lines = store.list()
        config = store.Namespace(rate=0.5)
        store["results"] = shared  # a name, by which any process of this user finds it
        for rate in (0.5, 0.25):
            config.rate = rate
            worker = mp.Process(target=train, args=(shared, lines, config))
            worker.start()
            worker.join()
        print(store["results"]["runs"], shared["weights"], lines[:])
