"""torchrun that exits with the exit code of the first rank that failed; torchrun itself exits with 1 for any of them.

The Job's podFailurePolicy reads the code: 85 means "resume me". torchrun passes SIGTERM on to its ranks, which save a
checkpoint, so that is 85 too.
"""

import sys

from torch.distributed.elastic.multiprocessing.api import SignalException
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
from torch.distributed.run import main

RESUME = 85

try:
    main()
except ChildFailedError as error:
    print(error, file=sys.stderr, flush=True)
    code = error.get_first_failure()[1].exitcode
    sys.exit(code if code > 0 else 128 - code)  # negative: the signal that ended it
except SignalException:
    sys.exit(RESUME)
