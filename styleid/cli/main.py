"""The command line: styleid COMMAND ARGUMENTS."""

import sys
import warnings
from collections.abc import Sequence

from styleid.cli.arguments import DESCRIPTIONS
from styleid.cli.commands import COMMANDS
from styleid.cli.figures import FIGURE_DESCRIPTIONS
from styleid.cli.parser import USER_ERROR, make_parser
from styleid.cli.settings import expand
from styleid.cli.study_arguments import STUDY_DESCRIPTIONS

OK, INTERRUPTED = 0, 130


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs one command; returns its exit code: 0, 2 for the user's errors, 130 after Ctrl-C."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    try:
        words = expand(words)
        options = make_parser(DESCRIPTIONS | FIGURE_DESCRIPTIONS | STUDY_DESCRIPTIONS, COMMANDS).parse_args(words)
        options.words = words
        with warnings.catch_warnings():
            warnings.showwarning = _show_warning
            options.run(options)
    except KeyboardInterrupt:
        print("styleid: interrupted", file=sys.stderr)
        return INTERRUPTED
    except MemoryError as error:
        return _fail(error if str(error) else "not enough memory; try a smaller --size, or --dtype bfloat16")
    except OSError as error:
        return _fail(f"{error.filename}: {error.strerror}" if error.filename else error)
    except (ValueError, ImportError) as error:
        return _fail(error)
    return OK


def _fail(error: object) -> int:
    print(f"styleid: error: {error}", file=sys.stderr)
    return USER_ERROR


def _show_warning(message: Warning | str, *_: object, **__: object) -> None:
    print(f"styleid: warning: {message}", file=sys.stderr)
