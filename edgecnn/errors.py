"""The errors that edgecnn raises on purpose, each kind with its own exit code. 0 is success, 1 an unexpected failure, 2 a usage error."""

from collections.abc import Iterable


class EdgeCNNError(Exception):
    """Base of all errors below. `exit_code` is the exit code of the command line."""

    exit_code = 1

    def __init_subclass__(cls, exit_code: int = 0) -> None:
        cls.exit_code = exit_code or cls.exit_code


class UnknownNameError(EdgeCNNError, LookupError, exit_code=3):
    """An unknown name of a dataset, network, engine or target."""


class RecipeError(EdgeCNNError, ValueError, exit_code=4):
    """A recipe with an unknown key, a wrong type or a value out of range."""


class DatasetError(EdgeCNNError, ValueError, exit_code=5):
    """Images that cannot make a dataset: no classes, one class, an empty class, broken files."""


class UnsafeArchiveError(DatasetError, exit_code=6):
    """An archive that is too large when unpacked, or has a path that leads outside of it."""


class ImageError(EdgeCNNError, ValueError, exit_code=7):
    """An image file that cannot be decoded: unreadable, truncated or of an unknown format."""


class ImageTooLargeError(ImageError, exit_code=8):
    """An image that would decode to more pixels than the limit (a decompression bomb)."""


class DownloadError(EdgeCNNError, OSError, exit_code=9):
    """A download that failed, or whose SHA-256 is not the expected one."""


class RunError(EdgeCNNError, ValueError, exit_code=10):
    """No such run, or a run that lacks what the stage needs."""


class NetworkError(EdgeCNNError, ValueError, exit_code=11):
    """A network that cannot be built for the given input or options."""


class TrainingError(EdgeCNNError, ArithmeticError, exit_code=12):
    """Training that cannot continue, for example because the loss is not a number."""


class ExportError(EdgeCNNError, RuntimeError, exit_code=13):
    """A conversion that failed, or an int8 file that holds a float tensor."""


class ParityError(EdgeCNNError, exit_code=14):
    """An exported model that does not answer like the float model: it failed the gate."""


class BundleError(EdgeCNNError, ValueError, exit_code=15):
    """A bundle that cannot be proved to be whole."""


class EngineError(EdgeCNNError, ImportError, exit_code=16):
    """An inference engine that is not installed or cannot run the model."""


class ProviderError(EngineError, exit_code=17):
    """A requested execution provider that the session does not run on."""


class SelftestError(EdgeCNNError, exit_code=18):
    """Outputs on this device that differ from the bundle's golden ones by more than allowed."""


class OutputError(EdgeCNNError, OSError, exit_code=19):
    """An output that cannot be written: no space, no permission, no such folder."""


class OutputExistsError(OutputError, exit_code=20):
    """An output that exists and must not be replaced."""


class SplitError(EdgeCNNError, PermissionError, exit_code=21):
    """A stage requested test images that it must not see."""


class PartialFailure(EdgeCNNError, exit_code=22):
    """Work that succeeded except for some inputs, each of which was reported."""


class ThresholdError(EdgeCNNError, ValueError, exit_code=23):
    """No threshold meets the target error among answered images."""


class CameraError(EdgeCNNError, OSError, exit_code=24):
    """A camera or stream that cannot be opened: absent, busy, no permission, no supported format."""

    def __init__(self, problem: str, source: str = "") -> None:
        super().__init__(f"{source}: {problem}" if source else problem)
        self.problem = problem


class EmulatorError(EdgeCNNError, RuntimeError, exit_code=25):
    """A board that cannot be emulated here, or a process that died on it."""


class DoctorError(EdgeCNNError, RuntimeError, exit_code=26):
    """A problem of this machine that keeps edgecnn from working; `edgecnn doctor` reports it."""


class ClusterError(EdgeCNNError, ConnectionError, exit_code=27):
    """Workers that cannot train together: wrong addresses, different recipes or images, or a lost worker."""


class MissingExtraError(EdgeCNNError, ImportError, exit_code=28):
    """A missing package from one of edgecnn's extras."""


class MqttError(EdgeCNNError, ConnectionError, exit_code=29):
    """A broker that cannot be reached, or refuses the connection, for a command that only needs the broker."""


class SlotError(EdgeCNNError, ValueError, exit_code=30):
    """A change of a device's releases that is not possible: unknown or older release, no previous one, or another change meanwhile."""


class ServiceError(EdgeCNNError, RuntimeError, exit_code=31):
    """A service that cannot be set up: no systemd, not root, or invalid options."""


class FindingsError(EdgeCNNError, ValueError, exit_code=32):
    """Images with findings that `--fail-on` does not allow."""


class StressError(EdgeCNNError, exit_code=33):
    """A model whose accuracy under corruptions is below the pass line."""


class UpdateError(EdgeCNNError, RuntimeError, exit_code=34):
    """A board's update that was refused or failed; the model in use stays in use."""


class ReleaseError(EdgeCNNError, RuntimeError, exit_code=35):
    """A change of a repository of releases that is not possible: keys, folder, bundle, or another change at the same time."""


class WorseError(EdgeCNNError, exit_code=36):
    """A new model that is worse than the old one on photos that neither learnt from."""


class NotShownError(EdgeCNNError, exit_code=37):
    """A new model with too few photos to tell whether it is worse than the old one."""


def nearest(name: str, known: Iterable[str]) -> str:
    """Return the end of a message about an unknown name: "Did you mean 'digits'? Known: cifar10, digits.", or only the list."""
    import difflib  # here, since only errors need it

    names = sorted(known)
    listing = f"Known: {', '.join(names)}."
    close = difflib.get_close_matches(name, names, n=1) or [known for known in names if name and name in known]
    return f"Did you mean {close[0]!r}? {listing}" if close else listing


def first_line(error: BaseException) -> str:
    """Return the first line of a library's error, or the error's type if it has no text."""
    return next(iter(str(error).strip().splitlines()), type(error).__name__)
