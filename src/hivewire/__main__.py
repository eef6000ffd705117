"""`python -m hivewire` is the command `hivewire`."""

import sys

from hivewire.cli.main import main

sys.exit(main())
