"""Note, cell by cell, which lines of the files named in $BOOK_TRACE this kernel reaches, and its peak memory.

An included region counts as executed only if the page's own run reached it. Only a page that includes one is
traced: tracing costs about 2 % of a training step, and several times that where plain Python calls dominate.
"""


def _watch() -> None:
    import itertools
    import json
    import os
    import sys

    from IPython import get_ipython

    report = os.environ.get("BOOK_REPORT")
    traced = [path for path in os.environ.get("BOOK_TRACE", "").split(os.pathsep) if path]
    if not report:
        return
    shell = get_ipython()
    tracer = None
    if traced:
        import coverage

        tracer = coverage.Coverage(data_file=None, include=traced, config_file=False)
        tracer.set_option("run:disable_warnings", ["no-data-collected"])  # not before the file is imported
        tracer.start()

    counter = itertools.count(1)

    def before(_: object) -> None:
        if tracer:
            tracer.switch_context(str(next(counter)))

    def after(_: object) -> None:
        reached: dict[str, dict[int, list[str]]] = {}
        if tracer:
            tracer.stop()
            data = tracer.get_data()
            reached = {path: data.contexts_by_lineno(path) for path in data.measured_files()}
            tracer.start()
        with open(report, "w", encoding="utf-8") as file:
            json.dump({"peak_bytes": peak(), "reached": reached}, file)

    def peak() -> int:
        if sys.platform == "win32":
            import psutil

            return psutil.Process().memory_info().peak_wset
        import resource

        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)

    shell.events.register("pre_run_cell", before)
    shell.events.register("post_run_cell", after)


_watch()
del _watch
