//! The `grub.cfg` that a guest without one gets.

use super::BootPlace;
use super::grub::is_plain;

/// How our configurations begin, so that a second conversion may replace them.
pub(super) const MARK: &str = "# Written by v2v.";

/// Screen and serial line alike, at 115200 baud.
const CONSOLES: &str = "\
serial --unit=0 --speed=115200
terminal_input serial console
terminal_output serial console
";

fn search(place: &BootPlace) -> String {
    match place.uuid.as_deref().filter(|uuid| is_plain(uuid)) {
        Some(uuid) => format!("search --no-floppy --fs-uuid --set=root {uuid}\n"),
        None => String::new(),
    }
}

/// Reads GRUB legacy's menu at each start: the guest's `update-grub` goes on writing that.
pub(super) fn for_menu_lst(place: &BootPlace) -> String {
    let (search, dir) = (search(place), path(&place.boot_dir));
    format!(
        "{MARK} It reads menu.lst, which stays the menu to edit and is what this system's update-grub writes.\n\
         {CONSOLES}{search}insmod legacycfg\ninsmod gzio\nlegacy_configfile {dir}/grub/menu.lst\n"
    )
}

/// Reads syslinux's menu at each start: the guest's own tool goes on writing that. `path` is where GRUB finds it.
pub(super) fn for_syslinux(place: &BootPlace, path: &str) -> String {
    let search = search(place);
    format!(
        "{MARK} It reads {path}, which stays the menu to edit and is what this system's own tool writes.\n\
         {CONSOLES}{search}insmod syslinuxcfg\ninsmod gzio\nsyslinux_configfile -s {path}\n"
    )
}

/// Finds kernels at each start, so that installing or removing one needs nothing more.
///
/// The newest by its version is the default. GRUB's scripts can't sort, and its globs come in no order: versions are compared number by
/// number. Kernels of Xen's own (`-xen`, but not Debian's `-xen-amd64`) do not start on KVM and are passed over, as are rescue images and backup copies.
pub(super) fn finds_kernels(place: &BootPlace, root: &str, options: &str) -> String {
    let (search, dir) = (search(place), &path(&place.boot_dir));
    let root = word(root);
    let options: String = options.split_whitespace().map(|o| format!(" {}", word(o))).collect();
    FINDS_KERNELS
        .replace("@MARK@", MARK)
        .replace("@CONSOLES@", CONSOLES)
        .replace("@SEARCH@", &search)
        .replace("@DIR@", dir)
        .replace("@ROOT@", &root)
        .replace("@OPTIONS@", &options)
}

/// Hands over to the guest's own configuration, in which commands may be called as a BIOS's GRUB, or a distribution's, calls them.
pub(super) fn hands_over(uuid: &str, boot_dir: &str) -> String {
    let dir = path(boot_dir);
    let mut text = format!("{MARK} It hands over to the system's own configuration.\nsearch --no-floppy --fs-uuid --set=root {uuid}\n");
    for (old, new) in [("linux16", "linux"), ("initrd16", "initrd"), ("linuxefi", "linux"), ("initrdefi", "initrd")] {
        text += &format!("function {old} {{\n  {new} \"$@\"\n}}\n");
    }
    text + &format!("set prefix=($root){dir}/grub\nconfigfile $prefix/grub.cfg\n")
}

/// A path in the script: it stands in globs and tests, where quotes would be in the way.
fn path(dir: &str) -> String {
    let plain = |c: char| c.is_ascii_alphanumeric() || "/._-@+:,".contains(c);
    dir.chars().map(|c| if plain(c) { c.to_string() } else { format!("\\{c}") }).collect()
}

/// A word that GRUB's shell takes as it is.
fn word(text: &str) -> String {
    if !text.is_empty() && text.bytes().all(|b| b.is_ascii_alphanumeric() || b"-_=/.,:+@%".contains(&b)) {
        return text.into();
    }
    format!("'{}'", text.replace('\'', "'\\''"))
}

const FINDS_KERNELS: &str = r#"@MARK@ It finds this system's kernels at each start, the newest first. A boot loader package of
# the system's own (grub-pc with update-grub) may replace it.
@CONSOLES@@SEARCH@insmod regexp
insmod test
insmod gzio
set timeout=3
set default=0
set best=
set b1=0
set b2=0
set b3=0
set b4=0
set b5=0

# Sets initrd to the initrd of the kernel of version $1, if there is one.
function find_initrd {
  set initrd=
  for candidate in @DIR@/initrd.img-$1 @DIR@/initramfs-$1.img @DIR@/initrd-$1 @DIR@/initrd-$1.img @DIR@/initramfs-$1; do
    if [ -z "$initrd" -a -f "$candidate" ]; then set initrd=$candidate; fi
  done
}

# Adds an entry for the kernel $1 of version $2.
function add {
  find_initrd $2
  menuentry "Linux $2" "$1" "$initrd" {
    echo "Loading $2 ..."
    linux $2 root=@ROOT@ ro@OPTIONS@
    if [ -n "$3" ]; then initrd $3; fi
  }
}

for kernel in @DIR@/vmlinuz-*; do
  if [ ! -f "$kernel" ]; then continue; fi
  regexp --set=1:version '.*/vmlinuz-(.*)' "$kernel"
  if regexp '(-xen$|el5xen|xenU|rescue|\.old|\.bak|\.dpkg)' "$version"; then continue; fi
  set v1=0
  set v2=0
  set v3=0
  set v4=0
  regexp --set=1:v1 '^([0-9]+)' "$version"
  regexp --set=1:v2 '^[0-9]+\.([0-9]+)' "$version"
  regexp --set=1:v3 '^[0-9]+\.[0-9]+\.([0-9]+)' "$version"
  regexp --set=1:v4 '^[0-9.]+[^0-9.]+([0-9]+)' "$version"
  # A kernel with an initrd goes before any without.
  find_initrd $version
  set v5=0
  if [ -n "$initrd" ]; then set v5=1; fi
  set newer=
  if [ -z "$best" ]; then set newer=1
  elif [ $v5 -ne $b5 ]; then if [ $v5 -gt $b5 ]; then set newer=1; fi
  elif [ $v1 -ne $b1 ]; then if [ $v1 -gt $b1 ]; then set newer=1; fi
  elif [ $v2 -ne $b2 ]; then if [ $v2 -gt $b2 ]; then set newer=1; fi
  elif [ $v3 -ne $b3 ]; then if [ $v3 -gt $b3 ]; then set newer=1; fi
  elif [ $v4 -gt $b4 ]; then set newer=1
  fi
  if [ -n "$newer" ]; then
    set best=$version
    set b1=$v1
    set b2=$v2
    set b3=$v3
    set b4=$v4
    set b5=$v5
  fi
done

if [ -n "$best" ]; then add @DIR@/vmlinuz-$best $best; fi
for kernel in @DIR@/vmlinuz-*; do
  if [ ! -f "$kernel" ]; then continue; fi
  regexp --set=1:version '.*/vmlinuz-(.*)' "$kernel"
  if [ "$version" != "$best" ]; then add $kernel $version; fi
done
"#;
