//! guestfish's commands that are not there, and what does their work instead.

/// Names, or what they begin with where a `*` ends them; and what to do.
const ABSENT: &[(&[&str], &str)] = &[
    (
        &["aug-*"],
        "Augeas is not there: 'cat', 'grep' and 'read-lines' look into settings; 'edit', 'write', virt-edit -e and virt-customize --edit change them",
    ),
    (
        &["hivex-*"],
        "the registry is not opened here: virt-inspector tells of Windows; 'download' a hive (inspect-get-windows-system-hive) for hivexsh or \
         hivexregedit, and 'upload' it again",
    ),
    (&["journal-*"], "virt-log prints journals"),
    (&["inotify-*"], "nothing else changes these files; virt-tail follows those of a running guest"),
    (&["mount-local*", "umount-local"], "virt-mount mounts a guest on this machine"),
    (&["mount-9p", "list-9p", "rsync*"], "there is no network and no shared folder: copy-in, copy-out, tar-in and tar-out copy"),
    (&["mount-loop", "mkmountpoint", "rmmountpoint", "remount"], "mount a filesystem on / first, and others in directories of it"),
    (&["acl-*"], "'lgetxattr' and 'lsetxattr' of system.posix_acl_access work on access lists"),
    (&["cap-*"], "'lgetxattr' and 'lsetxattr' of security.capability work on capabilities"),
    (&["selinux-relabel", "getcon", "setcon"], "virt-customize --selinux-relabel gives files their labels"),
    (&["scrub-*"], "virt-customize --scrub overwrites files; 'zero-device' overwrites a device"),
    (&["sfdisk*"], "'part-init', 'part-add' and 'part-disk' make partitions"),
    (&["luks-format*", "luks-add-key", "luks-kill-slot"], "cryptsetup in virt-rescue does it"),
    (&["md-*"], "mdadm in virt-rescue does it; arrays that are there are started by themselves"),
    (&["ldmtool-*", "list-ldm-*"], "dynamic disks of Windows are not put together"),
    (&["btrfs-*", "btrfstune-*"], "btrfs in virt-rescue does it"),
    (&["ntfsclone-*"], "'download-device' and 'img dd' copy devices"),
    (
        &["grub-install", "extlinux", "syslinux"],
        "the guest's own boot loader is installed by a command of the guest's: 'command', virt-customize --run-command",
    ),
    (&["yara-*"], "copy-out or virt-mount lets a scanner of this machine see the files"),
    (&["setenv", "unsetenv", "umask"], "set it in the shell that starts this program"),
    (&["add-domain", "domain"], "-d at the start adds the disks of a domain"),
    (&["hexedit"], "'hexdump' shows a file, 'pwrite' changes bytes of it"),
    (&["event", "list-events", "delete-event"], "there are no events; -v and -x say what is done"),
];

/// What to do instead of a command that is not there.
pub(super) fn hint(name: &str) -> Option<&'static str> {
    let is = |pattern: &&str| pattern.strip_suffix('*').map_or(*pattern == name, |start| name.starts_with(start));
    ABSENT.iter().find(|(names, _)| names.iter().any(is)).map(|(_, hint)| *hint)
}
