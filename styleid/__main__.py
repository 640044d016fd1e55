"""python -m styleid"""

import sys

from styleid.cli.main import main

sys.exit(main())
