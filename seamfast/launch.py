"""Where the command line starts: without torch, and with nothing to be imported from the working folder."""

# Nothing else is imported before `main` has taken the working folder off the search path.
import os
import sys


def main() -> int:
    """Run the command that ``sys.argv`` names and return its exit code; ``gate`` runs in a process of its own."""
    leave_working_folder()
    import signal
    import traceback

    from seamfast.options import EXIT_INCOMPLETE
    from seamfast.terminal import define_streams, say

    closed = define_streams()
    arguments = sys.argv[2:] if sys.argv[1:2] == ["--"] else sys.argv[1:]
    try:
        if sys.platform == "linux" and arguments[:1] == ["gate"]:
            from seamfast.supervisor import supervise

            return supervise(arguments[1:], has_stdout=1 not in closed)
        for number in (signal.SIGTERM, signal.SIGHUP):
            if signal.getsignal(number) is signal.SIG_DFL:
                signal.signal(number, signal.default_int_handler)
        if arguments[:1] == ["fleet"]:
            from seamfast.fleet.command import main as fleet

            return fleet(arguments[1:])
        from seamfast import cli

        return cli.main(arguments)
    except KeyboardInterrupt:
        say("seamfast: interrupted")
    except (ImportError, OSError, MemoryError) as error:  # as under a limit on memory
        say(f"seamfast: could not complete: {type(error).__name__}: {error}")
    except Exception:
        # Left to itself, Python would exit with 1, which is a verdict.
        traceback.print_exc()
        say("seamfast: could not complete: this is a defect in seamfast; please report the lines above")
    return EXIT_INCOMPLETE


def leave_working_folder() -> None:
    """Take the working folder off ``sys.path``, where ``python -m`` and an empty part of ``PYTHONPATH`` put it.

    torch looks for some twenty modules that need not be installed; a model's folder beside the working one could have
    the name of one. Folders that Python is installed in stay.
    """
    try:
        here = os.path.realpath(os.getcwd())
    except OSError:  # it was removed
        here = ""
    site = sys.modules.get("site")
    kept = {os.path.dirname(os.__file__), *(site.getsitepackages() if site is not None else ())}
    sys.path[:] = [entry for entry in sys.path if entry in kept or (entry and os.path.realpath(entry) != here)]
