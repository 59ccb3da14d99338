"""``python -m healer``: the same as the console script."""

import sys

from healer.cli import main

sys.exit(main())
