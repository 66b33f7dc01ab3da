"""The host: a process of the store in which objects of `multiprocessing.managers` live, and the proxies that stand for them.

Owns: the methods of a store for it (`hosted`), finding it (`reaching`), a process's line to it (`lines`), proxies that travel
(`proxies`), the manager (`manager`); and in the host its first lines (`__main__`), life (`host`), main module (`mains`), server
(`server`, `holders`), pools (`pools`).
Must not know: arrays. They pass as what they are, handles.

Only `hosted` is imported with the package; the others bring in `multiprocessing.managers`, for those who use a host.
"""
