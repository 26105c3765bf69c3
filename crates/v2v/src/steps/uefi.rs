//! A guest that started by UEFI: its firmware's memory stays on the Xen host, and with it the name of the loader.

use guestfs::Ext;

use crate::Result;
use crate::source::Boot;
use crate::step::{Context, Step};

pub(super) const STEP: Step = Step {
    name: "uefi",
    about: "the firmware on Xen knew the loader by an entry in its memory, which is not taken over: a new one looks at one path only",
    run,
};

/// Where distributions mount the ESP.
const MOUNTED: [&str; 4] = ["/boot/efi", "/efi", "/boot", "/boot/EFI"];
/// Loaders by name, those first that start without another one. Shim is only wanted for secure boot, which the new machine has not.
const LOADERS: [&str; 7] = ["grubx64.efi", "grub.efi", "systemd-bootx64.efi", "refind_x64.efi", "elilo.efi", "shimx64.efi", "shim.efi"];
/// A loader is no larger.
const LIMIT: u64 = 64 << 20;

fn run(cx: &mut Context<'_>) -> Result<()> {
    if cx.source.boot != Boot::Uefi {
        return Ok(());
    }
    let Some(efi) = MOUNTED.into_iter().find_map(|esp| child(cx, esp, "EFI")) else {
        cx.warn(
            "no ESP is mounted by /etc/fstab, so it was not looked whether there is a loader at \\EFI\\BOOT\\BOOTX64.EFI: where there is none, the \
             firmware has to be told of the guest's own",
        );
        return Ok(());
    };
    let fallback = child(cx, &efi, "BOOT").and_then(|boot| child(cx, &boot, "BOOTX64.EFI"));
    if let Some(fallback) = fallback {
        cx.note(format!("{fallback} is where every firmware looks"));
        return Ok(());
    }
    let mut found: Vec<(usize, bool, String)> = Vec::new();
    let own = own_folder(cx)?;
    for vendor in cx.names(&efi) {
        let Ok(vendor) = String::from_utf8(vendor) else { continue };
        for (rank, loader) in LOADERS.iter().enumerate() {
            // The distribution's own folder goes first.
            let foreign = own.as_deref().is_none_or(|own| !vendor.eq_ignore_ascii_case(own));
            found.extend(child(cx, &format!("{efi}/{vendor}"), loader).map(|path| (rank, foreign, path)));
        }
    }
    found.sort_by_key(|(rank, foreign, _)| (*foreign, *rank));
    let Some((.., loader)) = found.first() else {
        return Err(
            cx.fail(format!("{efi} has no loader that is known: install the guest's boot loader to the removable path on Xen first"))
        );
    };
    let content = cx.fs.read(loader.as_bytes(), LIMIT)?;
    let folder = child(cx, &efi, "BOOT").unwrap_or_else(|| format!("{efi}/BOOT"));
    let fallback = format!("{folder}/BOOTX64.EFI");
    cx.fs.put(fallback.as_bytes(), &content, None)?;
    cx.note(format!("{loader} is copied to {fallback}, where every firmware looks"));
    Ok(())
}

/// A file of a folder, whatever the case of its name: FAT does not care.
fn child(cx: &Context<'_>, folder: &str, name: &str) -> Option<String> {
    let found = cx.names(folder).into_iter().find(|n| n.eq_ignore_ascii_case(name.as_bytes()))?;
    Some(format!("{folder}/{}", String::from_utf8(found).ok()?))
}

/// The folder that the guest's distribution calls its own.
fn own_folder(cx: &Context<'_>) -> Result<Option<String>> {
    let release = cx.text("/etc/os-release")?.or(cx.text("/usr/lib/os-release")?);
    let id =
        release.as_deref().and_then(|text| text.lines().find_map(|l| Some(l.strip_prefix("ID=")?.trim_matches(['"', '\'']).to_owned())));
    // Red Hat's and SUSE's folders do not have the name of the system.
    Ok(id.map(|id| match id.as_str() {
        "rhel" => "redhat".into(),
        "sles" | "sled" => "sles".into(),
        id if id.starts_with("opensuse") => "opensuse".into(),
        _ => id,
    }))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::staged::Staged;
    use crate::testing::{MemFs, xen_tools_guest};

    fn run_on(base: &MemFs, check: impl FnOnce(&mut Context<'_>, Result<()>)) {
        let (mut source, layout) = xen_tools_guest();
        source.boot = Boot::Uefi;
        let options = crate::step::Options::default();
        let mut cx = Context::new(&source, &layout, &options, Staged::new(base)).unwrap();
        let outcome = cx.run(&STEP);
        check(&mut cx, outcome);
    }

    #[test]
    fn the_distributions_own_loader_is_copied() {
        let base = MemFs::new()
            .file("/etc/os-release", "NAME=Debian\nID=debian\n")
            .file("/boot/efi/EFI/debian/shimx64.efi", "shim")
            .file("/boot/efi/EFI/debian/grubx64.efi", "grub of debian")
            .file("/boot/efi/EFI/ARCH/grubx64.efi", "another's");
        run_on(&base, |cx, outcome| {
            outcome.unwrap();
            assert_eq!(cx.show("/boot/efi/EFI/BOOT/BOOTX64.EFI"), "grub of debian");
        });
    }

    #[test]
    fn what_is_there_stays() {
        let base = MemFs::new().file("/efi/EFI/Boot/bootx64.efi", "there").file("/efi/EFI/debian/grubx64.efi", "x");
        run_on(&base, |cx, outcome| {
            outcome.unwrap();
            assert!(cx.fs.is_unchanged());
        });
        run_on(&MemFs::new().dir("/boot"), |cx, outcome| {
            outcome.unwrap();
            assert!(cx.fs.is_unchanged() && cx.reports[0].warnings.len() == 1);
        });
        run_on(&MemFs::new().file("/boot/efi/EFI/acme/loader.efi", "x"), |_, outcome| {
            assert!(outcome.unwrap_err().to_string().contains("has no loader that is known"));
        });
    }
}
