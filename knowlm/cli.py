"""How every script starts: one line for a user's mistake, no work behind a misspelled flag."""

import argparse
import atexit
import ctypes
import errno
import inspect
import logging
import os
import re
import shutil
import signal
import sys
import textwrap
from collections.abc import Callable, Mapping
from difflib import get_close_matches
from pathlib import Path
from types import NoneType
from typing import Annotated, Any, NoReturn, get_args, get_origin

VALUES: dict[type, tuple[str, Callable[[str], Any]]] = {  # what a flag needs, and how its text is read
    str: ("text", str),
    int: ("a whole number", int),
    float: ("a number", float),
    bool: ("True or False", lambda text: {"true": True, "false": False}[text.lower()]),
}


def run(main: Callable[[], Any]) -> None:
    """Call ``main``; a ValueError or OSError becomes one line on stderr and exit code 1.

    ``KNOWLM_TRACEBACK=1`` shows the traceback instead.
    """
    if not sys.stderr.isatty():
        os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")  # transformers heeds it too
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)  # it misses a kernel that we don't ask for
    if not (shutil.which("nvidia-smi") or shutil.which("rocm-smi")):
        os.environ.setdefault("DS_ACCELERATOR", "cpu")  # spares DeepSpeed's warning on stdout
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that a stopped run cleans up after itself
    try:
        main()
    except (ValueError, OSError, MemoryError) as error:
        if os.environ.get("KNOWLM_TRACEBACK"):
            raise
        message = " ".join(str(error).split()) or type(error).__name__
        if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
            place = error.filename2 or error.filename or "output"
            message = f"{place}: the disk is full; make room, then repeat the command"
        elif isinstance(error, OSError) and error.filename and error.strerror:
            message = f"{error.filename}: {error.strerror.lower()}; name another path"
        print(f"{Path(sys.argv[0]).name}: error: {message}", file=sys.stderr)
        sys.exit(1)
    except KeyboardInterrupt:
        print(f"{Path(sys.argv[0]).name}: stopped", file=sys.stderr)
        sys.exit(130)
    if int(os.environ.get("WORLD_SIZE", 1)) > 1:
        end_at_once()


def end_at_once() -> NoReturn:
    """End a process of several well, but leave out the interpreter's own end.

    A thread of gloo that still wants to give back an object then aborts the process, and torchrun ends the others with
    it (https://github.com/pytorch/pytorch/pull/179291).
    """
    atexit._run_exitfuncs()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(0)


def end_with_parent(parent: int) -> None:
    """In a child of that process: be killed when it is, so as not to disturb its next run (Linux only)."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # 1 is PR_SET_PDEATHSIG of <sys/prctl.h>
        if os.getppid() != parent:
            os._exit(1)  # it was killed before that


class ArgumentParser(argparse.ArgumentParser):
    """argparse, with whole flags only, the script's docstring as help, and one line for a mistake."""

    def __init__(self, description: str):
        super().__init__(
            description=description, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
        )

    def parse_args(self, args=None, namespace=None):
        """As argparse, but a misspelled flag is named first: not another one that is missing for it."""
        if unknown := self._unknown(args):
            self.error(f"unrecognized arguments: {' '.join(unknown)}")
        return super().parse_args(args, namespace)

    def parse_known_args(self, args=None, namespace=None):
        """As argparse; where a flag is missing, one like it is named, for the others may be another program's."""
        given = sys.argv[1:] if args is None else args
        missing = [name for name, action in self._option_string_actions.items() if action.required]
        missing = [name for name in missing if not any(text.partition("=")[0] == name for text in given)]
        if slips := [flag for flag in self._unknown(args) if get_close_matches(flag, missing, cutoff=0.8)]:
            self.error(f"unrecognized arguments: {' '.join(slips)}")
        return super().parse_known_args(args, namespace)

    def _unknown(self, args) -> list[str]:
        flags = [text.partition("=")[0] for text in (sys.argv[1:] if args is None else args)]
        flags = [flag for flag in flags if re.fullmatch(r"--\S+", flag)]  # argparse takes the others for values
        return [flag for flag in flags if flag not in self._option_string_actions]

    def error(self, message: str) -> NoReturn:
        refuse(f"{message} (see --help)")


def refuse(message: str) -> NoReturn:
    """One line on stderr and exit code 2: the command itself is wrong."""
    print(f"{Path(sys.argv[0]).name}: error: {message}", file=sys.stderr)
    sys.exit(2)


def run_fire(component: Callable | Mapping[str, Callable], doc: str) -> None:
    """``fire.Fire``, behind a guard that stops at an unknown, repeated or missing flag before any work.

    component: one function, or functions by command name. A parameter annotated
    ``Annotated[type, "help"]`` shows that help under ``--help``.
    """
    arguments = sys.argv[1:]
    if isinstance(component, Mapping):
        if not arguments or arguments[0] in ("-h", "--help"):
            _print_help(doc, component)
            sys.exit(0 if arguments else 2)
        if arguments[0] not in component:
            refuse(f"unknown command: {arguments[0]} (choose from {', '.join(component)})")
        function = component[arguments.pop(0)]
    else:
        function = component
    if any(argument in ("-h", "--help") for argument in arguments):
        _print_help(doc, {function.__name__: function} if isinstance(component, Mapping) else {"": function})
        sys.exit(0)
    _check_flags(function, arguments)

    import fire
    from fire.decorators import SetParseFns

    readers = {name: reader_of(name, p.annotation) for name, p in inspect.signature(function).parameters.items()}
    typed = SetParseFns(**{name: reader for name, reader in readers.items() if reader})(function)
    run(lambda: fire.Fire(typed, command=arguments))


def reader_of(name: str, annotation: Any) -> Callable[[str], Any] | None:
    """How a flag's text becomes a value of the annotated type, for plain types; fire would guess: 2023 a number."""
    kind = get_args(annotation)[0] if get_origin(annotation) is Annotated else annotation
    kinds = [part for part in get_args(kind) or [kind] if part is not NoneType]
    if len(kinds) != 1 or kinds[0] not in VALUES:
        return None
    needed, read = VALUES[kinds[0]]

    def read_or_refuse(text: str) -> Any:
        try:
            return None if text == "None" and NoneType in get_args(kind) else read(text)
        except (ValueError, KeyError):
            refuse(f"--{name} {text}: {needed} is needed")

    return read_or_refuse


def _check_flags(function: Callable, arguments: list[str]) -> None:
    parameters = inspect.signature(function).parameters
    given, value_may_follow = set(), False
    for argument, following in zip(arguments, [*arguments[1:], "--"], strict=True):
        if argument.startswith("--") and argument != "--":
            name, has_value, _ = argument[2:].partition("=")
            name = name.replace("-", "_")
            if name not in parameters and name.startswith("no") and name[2:] in parameters:
                name = name[2:]
            if name not in parameters:
                refuse(f"unrecognized arguments: {argument} (see --help)")
            if name in given:
                refuse(f"--{name} is given twice")
            given.add(name)
            value_may_follow = not has_value
            if value_may_follow and following.startswith("--") and parameters[name].default is inspect.Parameter.empty:
                refuse(f"--{name}: a value is needed behind it")
        elif value_may_follow:
            value_may_follow = False
        else:
            refuse(f"unrecognized arguments: {argument} (flags are written --name value; see --help)")
    missing = [n for n, p in parameters.items() if p.default is p.empty and n not in given]
    if missing:
        refuse(f"the following arguments are required: {', '.join('--' + name for name in missing)}")


def _print_help(doc: str, functions: Mapping[str, Callable]) -> None:
    print(doc.strip())
    for name, function in functions.items():
        print(f"\n{name + ' ' if name else ''}options:")
        if name and function.__doc__:
            print(textwrap.indent(inspect.cleandoc(function.__doc__), "  "))
        for parameter in inspect.signature(function).parameters.values():
            help_text = ""
            if get_origin(parameter.annotation) is Annotated:
                help_text = next((a for a in get_args(parameter.annotation)[1:] if isinstance(a, str)), "")
            default = "required" if parameter.default is parameter.empty else f"default: {parameter.default!r}"
            print(
                textwrap.fill(
                    f"{help_text} ({default})",
                    100,
                    initial_indent=f"  --{parameter.name:<24} ",
                    subsequent_indent=" " * 29,
                )
            )
