"""What the hosts of these tests start from: BusyBox and kernel modules in an initramfs."""

import subprocess
from pathlib import Path


def module_files(root, modules):
    """BusyBox and modules of a tree, with all that they need and the order in which they are loaded."""
    version = next((root / "lib/modules").iterdir()).name
    output(["depmod", "-b", root, version])
    paths = []
    for module in modules:
        for line in output(["modprobe", "-d", root, "-S", version, "--show-depends", module]).splitlines():
            words = line.split()
            if words[0] == "insmod" and words[1] not in paths:
                paths.append(words[1])
    yield "busybox", 0o755, (root / "bin/busybox").read_bytes()
    yield "modules", None, b""
    yield "modules/order", 0o644, "".join(Path(p).name + "\n" for p in paths).encode()
    for path in paths:
        yield f"modules/{Path(path).name}", 0o644, Path(path).read_bytes()


def archive(entries):
    """A cpio archive of (name, mode or None for a folder, content)."""
    pieces = []
    for name, mode, content in [*entries, ("TRAILER!!!", 0, b"")]:
        mode = 0o40755 if mode is None else 0o100000 | mode
        fields = [len(pieces), mode, 0, 0, 1, 0, len(content), 0, 0, 0, 0, len(name) + 1, 0]
        head = b"070701" + b"".join(b"%08x" % f for f in fields) + name.encode() + b"\0"
        pieces.append(head + bytes(-len(head) % 4) + content + bytes(-len(content) % 4))
    return b"".join(pieces)


def output(command):
    """What a command says, which has to succeed."""
    return subprocess.run([str(c) for c in command], check=True, stdout=subprocess.PIPE, text=True).stdout
