"""python -m tests.native.cuda OUT: builds the fakes into OUT; STYLEID_CUDA_LIBRARIES=OUT makes styleid use them."""

import sys

from . import build

if len(sys.argv) != 2:
    sys.exit(__doc__)
print(f"export STYLEID_CUDA_LIBRARIES={build(sys.argv[1]).resolve()}")
