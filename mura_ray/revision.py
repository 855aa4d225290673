"""Which program this is: its commit where git knows it, and a hash of its sources in any case."""

import hashlib
import subprocess
from pathlib import Path


def git_revision() -> str:
    """The commit of this program's own repository, with "-dirty" where it was changed since; "unknown" without one."""
    here = Path(__file__).resolve()
    try:
        for arguments in (
            ["ls-files", "--error-unmatch", here.name],
            ["describe", "--always", "--dirty", "--abbrev=40"],
        ):
            done = subprocess.run(["git", *arguments], cwd=here.parent, capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
    return done.stdout.strip()


def source_hash() -> str:
    """The start of a SHA-256 over the package's Python files: nodes get these without their git history."""
    package, digest = Path(__file__).resolve().parent, hashlib.sha256()
    for path in sorted(package.rglob("*.py")):
        content = path.read_bytes()
        digest.update(f"{path.relative_to(package).as_posix()} {len(content)}\n".encode() + content)
    return digest.hexdigest()[:12]
