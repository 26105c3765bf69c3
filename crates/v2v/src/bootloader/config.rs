//! The `grub.cfg` that a guest without one gets.

use super::grub::is_plain;
use super::order::{self, PASSED_OVER};
use super::{BootPlace, Menu};
use crate::guest::kernels::Kernel;

/// How our configurations begin, so that a second conversion may replace them.
pub(super) const MARK: &str = "# Written by v2v.";

/// Screen and serial line alike, at 115200 baud.
const CONSOLES: &str = "\
serial --unit=0 --speed=115200
terminal_input serial console
terminal_output serial console
";

/// A menu that says nothing of it would wait for a key for ever, and pygrub did not show one to anybody.
const TIMEOUT: &str = "set timeout=5\nexport timeout\n";

fn search(place: &BootPlace) -> String {
    match place.uuid.as_deref().filter(|uuid| is_plain(uuid)) {
        Some(uuid) => format!("search --no-floppy --fs-uuid --set=root {uuid}\n"),
        None => String::new(),
    }
}

/// Reads GRUB legacy's menu, a file of that name, at each start: the guest's `update-grub` goes on writing that.
pub(super) fn for_menu_lst(place: &BootPlace, name: &str) -> String {
    let (search, dir) = (search(place), path(&place.boot_dir));
    format!(
        "{MARK} It reads {name}, which stays the menu to edit and is what this system's own tool writes.\n\
         {CONSOLES}{TIMEOUT}{search}insmod legacycfg\ninsmod gzio\nlegacy_configfile {dir}/grub/{name}\n"
    )
}

/// Reads syslinux's menu at each start: the guest's own tool goes on writing that. `path` is where GRUB finds it.
pub(super) fn for_syslinux(place: &BootPlace, path: &str) -> String {
    let search = search(place);
    format!(
        "{MARK} It reads {path}, which stays the menu to edit and is what this system's own tool writes.\n\
         {CONSOLES}{TIMEOUT}{search}insmod syslinuxcfg\ninsmod gzio\nsyslinux_configfile -s {path}\n"
    )
}

/// Finds kernels at each start, so that installing or removing one needs nothing more.
///
/// The newest by its version is the default. GRUB's scripts can't sort, and its globs come in no order: versions are compared number by
/// number. Kernels of Xen's own (`-xen`, but not Debian's `-xen-amd64` from 6 on) do not start on KVM and are passed over, as are those for debugging,
/// rescue images and backup copies. [`order`] tells the same in Rust.
///
/// Those that are known not to start are passed over by their names, so that later ones are not. A kernel may be named, and then goes before all
/// others.
pub(super) fn finds_kernels(place: &BootPlace, menu: &Menu<'_>, named: Option<&Kernel>) -> String {
    let (search, dir) = (search(place), &path(&place.boot_dir));
    let seen = |file: &str| format!("{dir}{}", path(file.strip_prefix("/boot").unwrap_or(file)));
    let named = named.map(|k| match order::version_of(&k.image).filter(|_| is_found(k)) {
        // It may be removed, or get an initrd, and is then found by its name.
        Some(version) => {
            let (image, version) = (seen(&k.image), word(version));
            format!("find_initrd {version}\nif [ -f {image} ]; then\nadd {image} {version} $initrd\nfi")
        }
        None => format!("add {} {} {}", seen(&k.image), word(&k.version), k.initrd.as_deref().map(seen).unwrap_or_default()),
    });
    let root = word(menu.root);
    let options: String = menu.options.split_whitespace().map(|o| format!(" {}", word(o))).collect();
    let unfit = order::told(menu.unfit).map(|image| format!("  if [ \"$kernel\" = {} ]; then continue; fi\n", seen(image)));
    let compare = |n| format!("  elif [ $v{n} -ne $b{n} ]; then if [ $v{n} -gt $b{n} ]; then set newer=1; fi\n");
    FINDS_KERNELS
        .replace("@COMPARE@", &(0..NUMBERS).map(compare).collect::<String>())
        .replace("@KEEP@", &(0..NUMBERS).map(|n| format!("    set b{n}=$v{n}\n")).collect::<String>())
        .replace("@PASSED_OVER@", &PASSED_OVER.join("|").replace('.', "\\."))
        .replace("@UNFIT@", &unfit.collect::<String>())
        .replace("@MARK@", MARK)
        .replace("@CONSOLES@", CONSOLES)
        .replace("@SEARCH@", &search)
        .replace("@KERNELS@", &IMAGES.map(|image| format!("@DIR@/{image}*")).join(" "))
        .replace("@INITRDS@", &INITRDS.map(|initrd| format!("@DIR@/{initrd}")).join(" "))
        .replace("@DIR@", dir)
        .replace("@ROOT@", &root)
        .replace("@NAMED@", &named.map_or(String::new(), |line| format!("{}\n", line.trim_end())))
        .replace("@OPTIONS@", &options)
}

/// How kernels' names begin that are found, and what the initrds are called of one whose name ends with `$1`.
pub(super) const IMAGES: [&str; 3] = ["vmlinuz-", "kernel-", "bzImage-"];
pub(super) const INITRDS: [&str; 5] = ["initrd.img-$1", "initramfs-$1.img", "initrd-$1", "initrd-$1.img", "initramfs-$1"];

/// Numbers by which kernels are compared: whether there is an initrd, the release's three, and four of the package's: 427.13.1.el9.
pub(super) const NUMBERS: usize = 8;

/// Whether a kernel and its initrd are found by their names at each start.
pub(crate) fn is_found(kernel: &Kernel) -> bool {
    let name = kernel.image.strip_prefix("/boot/").unwrap_or_default();
    let Some(version) = IMAGES.iter().find_map(|image| name.strip_prefix(image)) else { return false };
    kernel.initrd.as_ref().is_none_or(|initrd| INITRDS.iter().any(|n| format!("/boot/{}", n.replace("$1", version)) == *initrd))
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

# Sets initrd to the initrd of the kernel of version $1, if there is one.
function find_initrd {
  set initrd=
  for candidate in @INITRDS@; do
    if [ -z "$initrd" -a -f "$candidate" ]; then set initrd=$candidate; fi
  done
}

# Adds an entry for the kernel $1 of version $2, with the initrd $3 if there is one.
function add {
  menuentry "Linux $2" "$1" "$3" {
    echo "Loading $2 ..."
    linux $2 root=@ROOT@ ro@OPTIONS@
    if [ -n "$3" ]; then initrd $3; fi
  }
}

# Sets next to the number that stands in rest behind $1, and rest to what is behind that.
function take {
  set next=0
  # What begins with a dash would be taken for an option.
  regexp --set=1:next --set=2:rest "^=$1([0-9]+)(.*)" "=$rest"
}

for kernel in @KERNELS@; do
  if [ ! -f "$kernel" ]; then continue; fi
  regexp --set=2:version '.*/(vmlinuz|kernel|bzImage)-(.*)' "$kernel"
  if regexp '(-xen$|2\.6\.(18|26)-.*-xen-|@PASSED_OVER@)' "$version"; then continue; fi
@UNFIT@  # In names like genkernel-x86_64-6.1.2-gentoo the numbers come later.
  set number=$version
  regexp --set=1:number '([0-9]+\.[0-9].*)' "$version"
  # A kernel with an initrd goes before any without.
  find_initrd $version
  set v0=0
  if [ -n "$initrd" ]; then set v0=1; fi
  set v1=0
  set v2=0
  set v3=0
  set rest=
  regexp --set=1:v1 '^([0-9]+)' "$number"
  regexp --set=1:v2 '^[0-9]+\.([0-9]+)' "$number"
  regexp --set=1:v3 '^[0-9]+\.[0-9]+\.([0-9]+)' "$number"
  regexp --set=1:rest '^[0-9.]+(.*)' "$number"
  take '[^0-9]*'; set v4=$next
  take '[.]'; set v5=$next
  take '[.]'; set v6=$next
  take '[.]'; set v7=$next
  set newer=
  if [ -z "$best" ]; then set newer=1
@COMPARE@  fi
  if [ -n "$newer" ]; then
    set best=$kernel
    set best_version=$version
    set best_initrd=$initrd
@KEEP@  fi
done

@NAMED@if [ -n "$best" ]; then add $best $best_version $best_initrd; fi
for kernel in @KERNELS@; do
  if [ ! -f "$kernel" ]; then continue; fi
  if [ "$kernel" != "$best" ]; then
    regexp --set=2:version '.*/(vmlinuz|kernel|bzImage)-(.*)' "$kernel"
    find_initrd $version
    add $kernel $version $initrd
  fi
done
"#;
