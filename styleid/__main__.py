"""python -m styleid"""

import sys

from styleid.cli import main

sys.exit(main())
