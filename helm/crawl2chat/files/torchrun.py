"""torchrun that ends with the exit code of the rank that ended first; torchrun itself answers 1 to all of them.

The Job's podFailurePolicy reads it: 85 means "resume me". Asked to stop (SIGTERM), torchrun passes it on to its ranks,
which save what they have, so that is 85 too.
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
