"""`python -m lit_hf`: the same as `lit-hf`."""

import sys

from lit_hf.cli.main import main

sys.exit(main())
