"""A command that comes some bytes into a file: python torn_writer.py COMMAND MODULE:FUNCTION BYTES ARGUMENT…

Once that function has returned, no file may grow beyond BYTES. With `TORN=kill` the kernel ends the process at that
byte, with `TORN=full` the write fails as on a disk that is full.
"""

import importlib
import os
import resource
import signal
import sys
from typing import Any


def main() -> int:
    command, last, size, *arguments = sys.argv[1:]
    name, _, function = last.partition(":")
    module = importlib.import_module(name)
    whole = getattr(module, function)

    def limited(*args: Any, **kwargs: Any) -> Any:
        result = whole(*args, **kwargs)
        if os.environ["TORN"] == "kill":
            signal.signal(signal.SIGXFSZ, signal.SIG_DFL)
        resource.setrlimit(resource.RLIMIT_FSIZE, (int(size), resource.RLIM_INFINITY))
        return result

    setattr(module, function, limited)
    return int(importlib.import_module(command).main(arguments))


if __name__ == "__main__":
    sys.exit(main())
