"""What a user can mend is one sentence, not a traceback. A leaf: this module imports nothing of the kit."""

import sys
from collections.abc import Callable
from typing import NoReturn


class UserError(Exception):
    """Something the user can put right: the message says what was wrong, where, and what to do."""


def run_main(main: Callable[[], None]) -> NoReturn:
    """Run a script's `main`; a `UserError` or Ctrl-C ends it with one line and a non-zero status.

    Any other exception is our bug and keeps its traceback.
    """
    try:
        main()
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        raise SystemExit(2) from None
    except KeyboardInterrupt:
        print("\nstopped by Ctrl-C", file=sys.stderr)
        raise SystemExit(130) from None
    raise SystemExit(0)
