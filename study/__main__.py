"""`python -m study`, the same as the command `ardmvc`."""

import sys

from study.main import main

if __name__ == "__main__":
    sys.exit(main())
