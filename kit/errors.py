"""What a user can mend is one sentence, not a traceback. A leaf: this module imports nothing of the kit."""

import os
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import NoReturn

# With several processes most errors are everybody's: the launcher ends the others once the first has said it.
SECONDS_FOR_RANK_0 = 5.0


class UserError(Exception):
    """Something the user can put right: the message says what was wrong, where, and what to do."""


@contextmanager
def told_in_one_line() -> Iterator[None]:
    """A `UserError` or Ctrl-C in the block ends the process with one line and a non-zero status.

    Any other exception is our bug and keeps its traceback.
    """
    try:
        yield
    except UserError as error:
        if os.environ.get("RANK", "0") != "0":
            time.sleep(SECONDS_FOR_RANK_0)
        print(f"error: {error}", file=sys.stderr)
        raise SystemExit(2) from None
    except KeyboardInterrupt:
        print("\nstopped by Ctrl-C", file=sys.stderr)
        raise SystemExit(130) from None


def run_main(main: Callable[[], None]) -> NoReturn:
    """Run a script's `main` and end the process: with status 0, or as `told_in_one_line`."""
    with told_in_one_line():
        main()
    raise SystemExit(0)
