"""Every error that edgecnn raises on purpose, each kind with its own exit code.

An error's text says what was received, what was expected and what to do next, in one to three
lines. The command line prints it without a traceback and exits with `exit_code`. Codes 0 to 2 are
taken: success, an unexpected failure, a usage error.
"""

from collections.abc import Iterable


class EdgeCNNError(Exception):
    """Base of all errors below.

    `exit_code` is what the command line exits with. `advice` names what can be done where that takes an option of a command: the
    command line adds the sentence that names it (`edgecnn.cli.advice`). It is empty where the text says all.
    """

    exit_code = 1

    def __init__(self, *args: object, advice: str = "") -> None:
        super().__init__(*args)
        self.advice = advice


class UnknownNameError(EdgeCNNError, LookupError):
    """A name that no dataset, network, engine or target has."""

    exit_code = 3


class RecipeError(EdgeCNNError, ValueError):
    """A recipe with an unknown key, a wrong type or a value out of range."""

    exit_code = 4


class DatasetError(EdgeCNNError, ValueError):
    """Images that cannot make a dataset: no classes, one class, an empty class, broken files."""

    exit_code = 5


class UnsafeArchiveError(DatasetError):
    """An archive with a path that leads outside of it, or that is too large when unpacked."""

    exit_code = 6


class ImageError(EdgeCNNError, ValueError):
    """An image file that cannot be decoded: unreadable, truncated or of no known format."""

    exit_code = 7


class ImageTooLargeError(ImageError):
    """An image that would decode to more pixels than the limit (a decompression bomb)."""

    exit_code = 8


class DownloadError(EdgeCNNError, OSError):
    """A download that failed, or whose SHA-256 is not the expected one."""

    exit_code = 9


class RunError(EdgeCNNError, ValueError):
    """No such run, or a run that lacks what the stage needs."""

    exit_code = 10


class NetworkError(EdgeCNNError, ValueError):
    """A network that cannot be built for the given input or options."""

    exit_code = 11


class TrainingError(EdgeCNNError, ArithmeticError):
    """Training that cannot continue, for example because the loss is not a number."""

    exit_code = 12


class ExportError(EdgeCNNError, RuntimeError):
    """A conversion that failed, or an int8 file that holds a float tensor."""

    exit_code = 13


class ParityError(EdgeCNNError):
    """An exported model that does not answer as the float model does: the gate."""

    exit_code = 14


class BundleError(EdgeCNNError, ValueError):
    """A bundle that cannot be proved whole."""

    exit_code = 15


class EngineError(EdgeCNNError, ImportError):
    """An inference engine that is not installed or cannot run the model."""

    exit_code = 16


class ProviderError(EngineError):
    """A requested execution provider that the session does not run on."""

    exit_code = 17


class SelftestError(EdgeCNNError):
    """Outputs on this device that differ from the bundle's golden ones by more than allowed."""

    exit_code = 18


class OutputError(EdgeCNNError, OSError):
    """An output that cannot be written: no space, no permission, no such folder."""

    exit_code = 19


class OutputExistsError(OutputError):
    """An output that exists and must not be replaced."""

    exit_code = 20


class SplitError(EdgeCNNError, PermissionError):
    """A stage requested test images that it must not see."""

    exit_code = 21


class PartialFailure(EdgeCNNError):
    """Work that succeeded except for some inputs, each of which was reported."""

    exit_code = 22


class ThresholdError(EdgeCNNError, ValueError):
    """No threshold keeps the error among answered images at the target."""

    exit_code = 23


class CameraError(EdgeCNNError, OSError):
    """A camera or stream that cannot be opened: absent, busy, no permission, no supported format.

    The text is the problem, after the source's name where `source` is given.
    """

    exit_code = 24

    def __init__(self, problem: str, source: str = "", *, advice: str = "") -> None:
        super().__init__(f"{source}: {problem}" if source else problem, advice=advice)
        self.problem = problem
        self.source = source


class EmulatorError(EdgeCNNError, RuntimeError):
    """A board that cannot be emulated here, or a process that ended on it."""

    exit_code = 25


class DoctorError(EdgeCNNError, RuntimeError):
    """A problem of this machine that keeps edgecnn from working; `edgecnn doctor` reports it."""

    exit_code = 26


class ClusterError(EdgeCNNError, ConnectionError):
    """Workers that do not train together: wrong addresses, different recipes or images, or one that was lost."""

    exit_code = 27


class MissingExtraError(EdgeCNNError, ImportError):
    """A package of one of edgecnn's extras that is not installed."""

    exit_code = 28


class MqttError(EdgeCNNError, ConnectionError):
    """A broker that cannot be reached, or that refuses the connection, where nothing but that was requested."""

    exit_code = 29


class SlotError(EdgeCNNError, ValueError):
    """A change of a device's releases that cannot be made: an unknown or an older one, none before, or another change at the same time."""

    exit_code = 30


class ServiceError(EdgeCNNError, RuntimeError):
    """A service that cannot be set up: no systemd, not root, or options that are not valid."""

    exit_code = 31


class FindingsError(EdgeCNNError, ValueError):
    """Images in which an inspection found what `--fail-on` does not allow."""

    exit_code = 32


class StressError(EdgeCNNError):
    """A model whose accuracy under corruptions is below the pass line."""

    exit_code = 33


def nearest(name: str, known: Iterable[str]) -> str:
    """Return the hint that ends an unknown-name message: the nearest valid name, then all of them.

    Args:
        name: what was received.
        known: the valid names.

    Returns:
        "Did you mean 'digits'? Known: cifar10, digits.", or only the list if no name is near. Part of a name is near it.
    """
    import difflib  # here, since only an error needs it

    names = sorted(known)
    listing = f"Known: {', '.join(names)}."
    close = difflib.get_close_matches(name, names, n=1) or [known for known in names if name and name in known]
    return f"Did you mean {close[0]!r}? {listing}" if close else listing


def first_line(error: BaseException) -> str:
    """Return the first line of what a library raised, or the error's type where it has no text."""
    return next(iter(str(error).strip().splitlines()), type(error).__name__)
