"""Shared parts of all commands: flags, exit statuses, and the user's config file."""

from __future__ import annotations

import argparse
import contextlib
import importlib.util
import io
import logging as py_logging
import os
import resource
import signal
import sys
import threading
import warnings
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NoReturn, TextIO

import jax
from absl import flags, logging
from ml_collections import ConfigDict

from switokd_jax import compilation_cache
from switokd_jax.config_files import find_config
from switokd_jax.errors import EXIT_STATUS, NonFiniteError, SaveError, Stopped, UserError
from switokd_jax.parallel import multihost
from switokd_jax.stop_signals import StopRequested

MIN_OPEN_FILES = 256


def configure_output() -> None:
    """Makes output of any text possible: a terminal that lacks a character gets its escape, `\\u732b`.

    A process that was started without stdout or stderr gets ones that write nowhere.
    """
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if stream is None:
            setattr(sys, name, os.fdopen(os.open(os.devnull, os.O_WRONLY), "w"))
        elif isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


def configure_logging() -> None:
    """Prints warnings and errors only, through absl."""
    logging.set_verbosity(logging.WARNING)
    logging.use_absl_handler()
    py_logging.getLogger("PIL").setLevel(py_logging.CRITICAL)  # the decoder reports what cannot be decoded
    # Orbax abandons the tasks of a failed save and asyncio prints a traceback of each; the checkpointer reports it.
    py_logging.getLogger("asyncio").setLevel(py_logging.CRITICAL)


@contextlib.contextmanager
def log_of_thread(output: TextIO) -> Iterator[None]:
    """Sends the log messages of the calling thread to a stream as well, inside the context."""
    handler, thread = py_logging.StreamHandler(output), threading.get_ident()
    handler.addFilter(lambda record: record.thread == thread)
    handler.setLevel(py_logging.WARNING)
    handler.setFormatter(py_logging.Formatter("%(levelname)s %(message)s"))
    logging.get_absl_logger().addHandler(handler)
    try:
        yield
    finally:
        logging.get_absl_logger().removeHandler(handler)


def configure_warnings(options: Sequence[str]) -> None:
    """Prints warnings of other packages where `python -W error` would raise them: a user cannot mend those.

    Args:
      options: `sys.warnoptions`.
    """
    if any(option.startswith("error") for option in options):
        warnings.filterwarnings("default", module=r"(?!switokd_jax|__main__)")


def raise_open_files_limit() -> None:
    """Lets the process open as many files as its hard limit allows: Orbax, XLA and the workers of a stream share them.

    Raises:
      UserError: if the hard limit is too low.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard != resource.RLIM_INFINITY and hard < MIN_OPEN_FILES:
        raise UserError(
            f"{hard} files may be open at a time; raise the limit to {MIN_OPEN_FILES} or more with `ulimit -n`"
        )
    if soft != resource.RLIM_INFINITY and soft < MIN_OPEN_FILES:
        resource.setrlimit(resource.RLIMIT_NOFILE, (MIN_OPEN_FILES, hard))


def is_help_requested(argv: Sequence[str]) -> bool:
    """Returns whether a command line asks for help.

    >>> is_help_requested(["main.py", "--help"]), is_help_requested(["main.py", "--workdir=help"])
    (True, False)
    """
    return any(flag.lstrip("-") in ("h", "help", "helpshort") for flag in argv[1:])


def parse_flags(
    argv: Sequence[str], flag_values: flags.FlagValues, config_flag: flags.FlagHolder[ConfigDict]
) -> ConfigDict:
    """Parses the absl flags of a command line.

    Args:
      argv: the command and its flags.
      flag_values: the flags that are defined.
      config_flag: the flag --config, one of them.

    Returns:
      The config of --config, changed by all --config.FIELD.

    Raises:
      UserError: for a flag, file or value that cannot be used.
    """
    try:
        rest = flag_values(with_config_path(argv))[1:]
        config = config_flag.value
        if config is not None and not isinstance(config, ConfigDict):
            config = config.get()  # stands for a file that could not be loaded, and raises its error
    # These are raised by absl and ml_collections for flags, files and values. Errors of other types come from the
    # code of a config file; they keep their traceback, which names the line.
    except (flags.Error, AttributeError, KeyError, TypeError, ValueError, OSError, OverflowError) as error:
        if missing := _missing_block(argv, error):
            raise UserError(missing) from error
        prefix = "" if isinstance(error, flags.Error) else "--config: "
        raise UserError(prefix + _last_line(error)) from error
    if rest:
        raise UserError(
            f"{rest[0]!r} is not a flag; flags are --config, --config.FIELD, --workdir, --dry_run; --help lists all"
        )
    if config is None:
        raise UserError("--config is missing; give a file, such as --config=digits; --help lists them")
    return config


def with_config_path(argv: Sequence[str]) -> list[str]:
    """Returns a command line with the path of the config file where it has the name of one; see `find_config`."""
    found, is_value = list[str](), False
    for arg in argv:
        flag, equals, value = arg.partition("=")
        if is_value:
            arg = find_config(arg)
        elif equals and flag in ("--config", "-config"):
            arg = f"{flag}={find_config(value)}"
        is_value = arg in ("--config", "-config")
        found.append(arg)
    return found


def _missing_block(argv: Sequence[str], error: BaseException) -> str:
    """Explains an error about a block that the config does not have; '' for all others."""
    name = str(error.args[0]).strip("'\"") if isinstance(error, KeyError) and error.args else ""
    flag = next((arg for arg in argv if name and arg.startswith("--config.") and f".{name}." in arg), "")
    if not flag:
        return ""
    block = flag.lstrip("-").partition(f".{name}.")[0] + f".{name}"
    return f"{flag}: there is no {block}; add it to the config file: {block} = config.network(model='resnet8'), say"


def _last_line(error: BaseException) -> str:
    # ml_collections puts the whole traceback of a config file into its message; the last line is the error.
    message = str(error.args[0] if isinstance(error, KeyError) else error)
    last = [line.strip() for line in message.splitlines() if line.strip()][-1]
    return last.removeprefix(f"{UserError.__module__}.{UserError.__qualname__}: ")


@contextlib.contextmanager
def exit_on_error(cluster: multihost.Cluster | None = None, stderr: TextIO | None = None) -> Iterator[None]:
    """Turns errors within the context into one line on stderr and an exit status.

    Args:
      cluster: of a process that has to end without waiting for the others; None for a process on its own.
      stderr: receives the line in place of the process's stderr.

    Raises:
      SystemExit: with status 1 after an error, or the status of `EXIT_STATUS` after a signal.
    """
    try:
        yield
    except (UserError, SaveError) as error:  # without notes: JAX adds some to errors of traced functions
        _exit(cluster, str(error), stderr=stderr)
    except NonFiniteError as error:
        _exit(cluster, "; ".join([str(error), *getattr(error, "__notes__", [])]), stderr=stderr)
    except Stopped as stopped:
        print(f"switokd_jax: {stopped}", file=stderr or sys.stderr)
        sys.exit(stopped.status)
    except BrokenPipeError:  # the reader of our output, such as `head`, has ended
        _discard_stdout()
        sys.exit(1)
    except KeyboardInterrupt:
        message = "stopped by Ctrl-C; repeat the command to resume from the latest checkpoint"
        _exit(cluster, message, EXIT_STATUS[signal.SIGINT])
    except jax.errors.JaxRuntimeError as error:
        if cluster is None:
            raise
        message = "if another process has ended, restart all of them: the run resumes from the latest checkpoint"
        _exit(cluster, f"{error}; {message}")


def _discard_stdout() -> None:
    """Drops what stdout still holds, or Python reports the failure once more when it ends."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _exit(cluster: multihost.Cluster | None, message: str, status: int = 1, stderr: TextIO | None = None) -> NoReturn:
    print(f"switokd_jax: {' '.join(message.split())}", file=stderr or sys.stderr)
    if cluster is None:
        sys.exit(status)
    multihost.exit_without_barrier(status)


def make_parser(doc: str | None, prog: str | None = None) -> argparse.ArgumentParser:
    """Makes the parser of a command that reads runs; pass its `--config` on to `run`."""
    parser = argparse.ArgumentParser(prog=prog, description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--config", metavar="FILE", help="the run's config, where that adds a method, network or data set"
    )
    return parser


def run(command: Callable[[], str], config: str | None = None) -> None:
    """Runs a command and prints the text that it returns. An error of the user ends it with one line and status 1.

    Args:
      command: the command.
      config: a config file to import first, because it registers a method, network or data set.
    """
    configure_output()
    configure_warnings(sys.warnoptions)
    compilation_cache.enable()
    try:
        multihost.start_backend()
        if config:
            config_module(Path(config))
        with compilation_cache.restart_after_wrong_program():
            output = command()
        print(output, flush=True)
    except UserError as error:
        sys.exit(f"switokd_jax: {error}")
    except BrokenPipeError:  # the reader of our output, such as `head`, has ended
        _discard_stdout()
        sys.exit(1)
    except OSError as error:
        # The message of the operating system is all there is to say.
        if error.filename is None:
            _discard_stdout()
        sys.exit(f"switokd_jax: {error.filename or 'the output'} cannot be read or written ({error.strerror})")
    except StopRequested as stop:
        print(f"switokd_jax: {stop}; repeat the command to go on", file=sys.stderr)
        sys.exit(stop.status)
    except KeyboardInterrupt:
        sys.exit("switokd_jax: stopped by Ctrl-C")


def config_module(path: Path) -> Any:
    """Imports a config file and returns its module; its get_config() makes the config.

    Raises:
      UserError: if there is no such file.
    """
    name = f"config_{path.stem}"  # hides no other module
    path = Path(find_config(str(path)))
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None or spec.loader is None or not path.exists():
        raise UserError(f"--config {path} is not a Python file")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # dataclasses look up the module that they are defined in
    spec.loader.exec_module(module)
    return module
