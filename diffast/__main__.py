"""`python -m diffast`: the command line."""

import sys

from diffast.cli import main

sys.exit(main())
